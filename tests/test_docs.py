"""README and docs: their code runs, their commands parse, their links resolve, and no picture is left over."""

import argparse
import ast
import importlib
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import distrijax
from distrijax.cli import bench, convert, generate, plan

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "examples").rglob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NOT_RUN = "# not run: "


def blocks() -> Iterator[tuple[str, str]]:
    """Yield the Python blocks of all pages, each with the place where it stands."""
    for page in PAGES:
        text = page.read_text()
        for match in FENCE.finditer(text):
            if match[1] == "python":
                line = text[: match.start()].count("\n") + 1
                yield f"{page.relative_to(ROOT)}:{line}", match[2]


def commands() -> Iterator[tuple[str, str]]:
    """Yield the shell commands of all pages: lines that are indented by four, or between single backquotes."""
    for page in PAGES:
        text = FENCE.sub("", page.read_text()).replace("\\\n", " ")
        lines = re.findall(r"^ {4,}(\S.*)$", text, re.MULTILINE) + re.findall(r"`([^`\n]+)`", text)
        for line in lines:
            for command in re.split(r" && |; ", re.sub(r"\s#\s.*| &$", "", line)):
                yield str(page.relative_to(ROOT)), command.removeprefix("$ ").strip()


ALL = list(blocks())
RUN = [pytest.param(code, id=place) for place, code in ALL if not code.startswith(NOT_RUN)]
COMPILED = [pytest.param(code, id=place) for place, code in ALL if code.startswith(NOT_RUN)]


@pytest.mark.parametrize("code", RUN)
def test_a_block_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "block", "exec"), {"__name__": "__main__"})


@pytest.mark.fast
@pytest.mark.parametrize("code", COMPILED)
def test_a_block_that_is_not_run_names_what_exists(code: str) -> None:
    """Compile the block, look up each name that it imports, and bind the arguments of calls to distrijax."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"
    check_calls(tree)


def check_calls(tree: ast.Module) -> None:
    pipelines = {"pipe": distrijax.StableDiffusionXLPipeline}
    if hasattr(distrijax, "StableDiffusionXLImg2ImgPipeline"):
        pipelines["img2img"] = distrijax.StableDiffusionXLImg2ImgPipeline
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        target = ast.unparse(call.func)
        if target in pipelines:
            signature = inspect.signature(pipelines[target].__call__)
            arguments = [None, *call.args]
        elif target.split(".")[0] in distrijax.__all__:
            function = distrijax
            for name in target.split("."):
                function = getattr(function, name)
            signature, arguments = inspect.signature(function), list(call.args)
        else:
            continue
        signature.bind(*arguments, **{keyword.arg: None for keyword in call.keywords if keyword.arg})  # not a **dict


@pytest.mark.fast
def test_wrong_calls_in_blocks_are_seen() -> None:
    for code in ("pipe('a', num_steps=3)", "Parallel(patches=2)", "pipe('a', height=8, width=8, prompt='b')"):
        with pytest.raises(TypeError, match="argument"):
            check_calls(ast.parse(code))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="distrijax", exit_on_error=False)
    parser.add_argument("--version", action="store_true")
    subparsers = parser.add_subparsers()
    for command in (generate, convert, plan, bench):
        command.add(subparsers)
    return parser


@pytest.mark.fast
def test_the_command_line_takes_each_command() -> None:
    known = re.compile(r"distrijax (generate|convert|plan|bench) \S")
    lines = [(page, line) for page, line in commands() if known.match(line)]
    assert len(lines) > 25
    for page, line in lines:
        words = shlex.split(line.replace("$common", ""))[1:]
        try:
            parser().parse_args(words)
        except (argparse.ArgumentError, SystemExit) as error:
            pytest.fail(f"{page}: {line}: {error}")


@pytest.mark.fast
def test_scripts_tests_and_markers_of_commands_exist() -> None:
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    known = {marker.split(":")[0] for marker in markers}
    seen = set()
    for page, line in commands():
        words = line.split()
        for script in (
            word for word in words if re.fullmatch(r"(benchmarks|examples|docs|tests)/\S+\.(py|sbatch|sh|yaml)", word)
        ):
            seen.add(script)
            assert (ROOT / script).is_file(), f"{page}: {line}"
        if words and words[0] == "pytest" and "-m" in words:
            assert words[words.index("-m") + 1] in known, f"{page}: {line}"
    assert len(seen) > 8


@pytest.mark.fast
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], target


@pytest.mark.fast
def test_each_picture_is_shown_somewhere() -> None:
    shown = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", page.read_text())
    }
    assert {path.resolve() for path in (ROOT / "docs").rglob("*.png")} == shown


@pytest.mark.fast
def test_the_readme_is_short_and_has_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    for command in ('pip install . && distrijax generate "', "pip install '.[test]' && pytest\n"):
        assert f"\n    {command}" in text


def test_each_argument_of_diffusers_is_spoken_of() -> None:
    import diffusers

    text = (ROOT / "docs" / "from-diffusers.md").read_text()
    names: set[str] = set()
    for pipeline in (diffusers.StableDiffusionXLPipeline, diffusers.StableDiffusionXLImg2ImgPipeline):
        names |= set(inspect.signature(pipeline.__call__).parameters)
    assert [name for name in sorted(names - {"self", "kwargs"}) if f"`{name}`" not in text] == []
