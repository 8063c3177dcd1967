"""Every code block of README and docs runs, on a tiny model, tiny SAEs and text made on the spot."""

import contextlib
import glob
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import sentences

import saekit

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*$")
TOOLS = {"pip", "python", "make", "pre-commit", "torchrun", "git"}  # lines of the shell that are not run


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, with the reason why it is not run, if there is one."""

    language: str
    code: str
    line: int
    not_run: str | None


def blocks_of(text):
    """The fenced blocks of a page, in order."""
    blocks = []
    for match in re.finditer(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        code = "\n".join(line.removeprefix(match[1]) for line in match[3].splitlines())
        reason = NOT_RUN.search(text[: match.start()])
        line = text[: match.start(3)].count("\n") + 1
        blocks.append(Block(match[2], code, line, reason[1] if reason else None))
    return blocks


@pytest.fixture(scope="module")
def world(tmp_path_factory, model_folder):
    """What the pages assume: a model and text, and the store and the family that one of them makes."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "my-model").symlink_to(model_folder)
    (folder / "my-text").mkdir()
    for number in range(40):
        text = "\n\n".join(sentences(60, seed=number))
        (folder / "my-text" / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SAEKIT_HOME", str(folder / "home"))
        patch.setenv("SAEKIT_FIGURES", str(folder / "figures"))
        run_page(ROOT / "docs" / "own.md")
        config = saekit.TrainingConfig(saekit.TopK(k=4), width=64, steps=100)
        store = saekit.ActivationStore.open("my-train")
        saekit.train(config, store, progress=False).dictionary.save("my-topk-sae")
    return folder


@pytest.fixture
def workplace(world, tmp_path, monkeypatch):
    """A folder of its own for a page, with what the pages assume in it."""
    for name in ("my-model", "my-text", "my-store", "my-family", "my-topk-sae"):
        (tmp_path / name).symlink_to(world / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAEKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SAEKIT_FIGURES", str(tmp_path / "figures"))
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
@pytest.mark.slow
def test_every_block_runs(page, workplace):
    if page.name == "own.md":
        return  # the world is what it makes
    if page.name == "README.md":
        for name in ("my-store", "my-family"):  # it makes its own
            (workplace / name).unlink()
    run_page(page)


def run_page(page):
    """Run every block of a page in the current folder."""
    namespace = {"__name__": "__main__"}
    blocks = blocks_of(page.read_text(encoding="utf-8"))
    for number, block in enumerate(blocks):
        if block.not_run or block.language == "text":
            continue
        where = f"{page.name}, line {block.line}"
        if block.language == "python":
            printed = io.StringIO()
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
            with contextlib.redirect_stdout(printed):
                exec(code, namespace)
            following = blocks[number + 1] if number + 1 < len(blocks) else None
            if following and following.language == "text":
                assert printed.getvalue().rstrip() == following.code.rstrip(), where
        elif block.language == "yaml":  # its first line names the file
            Path(block.code.splitlines()[0].removeprefix("# ")).write_text(block.code)
        else:
            assert block.language == "sh", f"{where}: a block must be python, sh, yaml or text"
            for line in block.code.replace("\\\n", " ").splitlines():
                run_in_shell(line, where)


def run_in_shell(line, where):
    """Run a line that begins with `saekit`; check that a target of make exists."""
    words = shlex.split(line, comments=True)
    if not words:
        return
    if words[0] == "saekit" and "--help" not in words:
        expanded = [path for word in words[1:] for path in (sorted(glob.glob(word)) or [word])]
        assert saekit.cli.main(["--quiet", *expanded]) == 0, where
    elif words[0] == "saekit":
        with pytest.raises(SystemExit, match="0"):
            saekit.cli.main(words[1:])
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets), where
    else:
        assert words[0] in TOOLS, where


def test_few_blocks_are_not_run_and_each_has_its_reason():
    left_out = [
        (name, block.line, block.not_run)
        for name, page in zip(NAMES, PAGES, strict=True)
        for block in blocks_of(page.read_text(encoding="utf-8"))
        if block.not_run
    ]
    assert len(left_out) <= 8, left_out
    assert all(re.match(r"needs ", reason) for *_, reason in left_out), left_out


def test_the_harness_sees_blocks_outputs_and_failures(workplace, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n\n```text\n2\n```\n")
    with pytest.raises(AssertionError, match="line 2"):
        run_page(page)
    page.write_text("<!-- not run: needs a hub -->\n```python\n1 / 0\n```\n")
    assert [block.not_run for block in blocks_of(page.read_text())] == ["needs a hub"]
    page.write_text("- item\n\n    ```sh\n    make nothing\n    ```\n")
    with pytest.raises(AssertionError, match="line 4"):
        run_page(page)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path = target.partition("#")[0]
        if re.match(r"https?:|mailto:", target) or not path:
            continue
        found = [page.parent / path]
        if page.is_relative_to(ROOT / "docs"):  # the site has pages that docs/hooks.py makes
            found += [ROOT / path.upper().replace(".MD", ".md")]
            found += [ROOT / re.sub(r"^(?:\.\./)?(notebooks/\w+)\.md$", r"\1.ipynb", path)]
        assert any(place.exists() for place in found), target
