"""The bridge from a page to Python: clicks on latents, and keys, of an explorer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anywidget

# Shown nowhere. It listens within the explorer that it is a part of (the element of class `saekit` around
# it), makes links of the elements that name a latent (`html.goto`), which without it are plain text, and
# keeps the focus inside when a linked element is replaced.
_LISTENER = """
const LINKS = "[data-goto], [data-sort]";
const OWN_KEYS = "input, textarea, select, [contenteditable=true], [role=slider], [role=tab]";
const KEYS = { ArrowLeft: "previous", k: "previous", ArrowRight: "next", j: "next", b: "back", f: "forward" };

function render({ model, el }) {
  const listening = new AbortController();
  let observer = null;
  let inside = false;

  function listen(root) {
    const take = (event) => { event.preventDefault(); event.stopPropagation(); };
    const follow = (event) => {
      const link = event.target.closest?.(LINKS);
      if (!link) return;
      take(event);
      const { goto, sort } = link.dataset;
      model.send(goto === undefined ? { sort } : { goto });
    };
    const press = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const target = event.target;
      if ((event.key === "Enter" || event.key === " ") && target.matches?.(LINKS)) return follow(event);
      const search = root.querySelector(".saekit-search input");
      if (target === search && event.key === "Escape") { take(event); root.focus({ preventScroll: true }); }
      if (target === search && event.key === "Enter") {
        take(event);
        model.send({ key: "first", query: search.value });  // the text itself may still be on its way
        root.focus({ preventScroll: true });
      }
      if (target.closest?.(OWN_KEYS)) return;
      if (event.key === "/" && search) { take(event); search.focus(); search.select(); }
      const key = KEYS[event.key];
      if (key) { take(event); model.send({ key }); }
    };
    const mark = () => {
      for (const link of root.querySelectorAll("[data-goto]:not([role]), [data-sort]:not([role])")) {
        link.setAttribute("role", "goto" in link.dataset ? "link" : "button");
        link.setAttribute("tabindex", "0");
      }
      if (inside && document.activeElement === document.body) root.focus({ preventScroll: true });
    };
    const entered = () => { inside = true; };
    const left = ({ target, relatedTarget }) => {
      if (root.contains(relatedTarget)) return;
      setTimeout(() => { if (target.isConnected) inside = false; });  // else it was replaced
    };
    const clicked = () => {
      if (!root.contains(document.activeElement)) root.focus({ preventScroll: true });
    };
    root.tabIndex = -1;
    root.setAttribute("aria-keyshortcuts", "J K B F ArrowLeft ArrowRight /");
    const options = { signal: listening.signal };
    root.addEventListener("click", follow, options);
    root.addEventListener("keydown", press, { ...options, capture: true });  // fields keep keys to themselves
    root.addEventListener("focusin", entered, options);
    root.addEventListener("focusout", left, options);
    root.addEventListener("pointerup", clicked, options);
    observer = new MutationObserver(mark);
    observer.observe(root, { childList: true, subtree: true });
    mark();
  }

  function connect() {
    if (listening.signal.aborted) return;
    const root = el.closest(".saekit");
    if (root) listen(root); else setTimeout(connect, 20);  // rendered, and not yet in the page
  }
  connect();
  return () => { listening.abort(); observer?.disconnect(); };
}
export default { render };
"""


class Bridge(anywidget.AnyWidget):
    """Sends what is clicked and pressed within an explorer to Python.

    Parameters
    ----------
    receive : callable
        Called with `{"goto": "width/latent"}`, `{"sort": column}` or `{"key": name}`, where the name is
        `"next"`, `"previous"`, `"back"`, `"forward"`, or `"first"` with the `query` that it is the first for.
    """

    _esm = _LISTENER

    def __init__(self, receive: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(layout={"display": "none"})
        self.on_msg(lambda _widget, content, _buffers: receive(content))
