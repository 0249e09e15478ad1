"""The command line: pictures and their settings, mistakes in one line, nothing overwritten or half-written."""

import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from distrijax import DistrijaxError, Parallel, StableDiffusionXLPipeline, cli
from distrijax.cli import commands, devices, generate, targets
from distrijax.cli.language import in_options
from distrijax.cli.pictures import METADATA
from distrijax.demo import MODEL

FAST = ["--steps", "2", "--quiet", "--seed", "5"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    return cli.main(list(arguments))


def settings(path: str | Path) -> dict[str, Any]:
    with Image.open(path) as image:
        return json.loads(image.info[METADATA])


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_picture_can_be_made_again_from_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "a red circle", *FAST, "--guidance-scale", "3", "--scheduler", "ddim") == 0
    assert capsys.readouterr().out == "a-red-circle.png\n"
    made = settings("a-red-circle.png")
    assert made["prompt"] == "a red circle"
    assert (made["steps"], made["seed"], made["guidance_scale"], made["scheduler"]) == (2, 5, 3.0, "ddim")
    assert run("generate", "--like", "a-red-circle.png", "--quiet", "--output", "again.png") == 0
    assert np.array_equal(pixels("again.png"), pixels("a-red-circle.png"))
    assert settings("again.png") == made
    assert run("generate", "--like", "a-red-circle.png", "--quiet", "--seed", "6", "--output", "other.png") == 0
    assert settings("other.png") == made | {"seed": 6}
    assert not np.array_equal(pixels("other.png"), pixels("again.png"))


def test_several_pictures_are_numbered_and_each_has_its_own_seed() -> None:
    assert run("generate", "a red circle", "a blue square", *FAST, "--num-images", "2", "--output", "set.png") == 0
    names = [f"set-{i}.png" for i in (1, 2, 3, 4)]
    assert [(settings(n)["prompt"], settings(n)["seed"]) for n in names] == [
        ("a red circle", 5),
        ("a red circle", 6),
        ("a blue square", 5),
        ("a blue square", 6),
    ]
    # Alone, the second picture is the same but for roundings of another batch size.
    assert run("generate", "--like", "set-2.png", "--quiet", "--output", "alone.png") == 0
    assert np.abs(pixels("alone.png").astype(int) - pixels("set-2.png")).max() <= 2


def test_nothing_is_overwritten_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.png").write_bytes(b"precious")
    assert run("generate", "a red circle", *FAST, "--output", "mine.png") == 2
    assert "mine.png exists" in capsys.readouterr().err
    assert Path("mine.png").read_bytes() == b"precious"
    Path("a-red-circle.png").write_bytes(b"precious")
    assert run("generate", "a red circle", *FAST) == 0
    assert Path("a-red-circle.png").read_bytes() == b"precious"
    assert pixels("a-red-circle-2.png").shape == (256, 256, 3)
    assert run("generate", "a red circle", *FAST, "--output", "mine.png", "--overwrite") == 0
    assert pixels("mine.png").shape == (256, 256, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], "there is no prompt"),
        (["generate", "x", "--output", "x.jpg"], "must end in .png"),
        (["generate", "x", "--output", "nowhere/x.png"], "no folder nowhere"),
        (["generate", "x", "--num-images", "0"], "--num-images is 0"),
        (["generate", "x", "--scheduler", "euler_anc", *FAST], "'euler_anc' is not supported; near: Euler a"),
        (["generate", "x", "--recipe", "lightning-3"], "no recipe 'lightning-3'; near: lightning-"),
        (["generate", "x", "--timesteps", "999;5"], "--timesteps is '999;5'; it must be ays, or numbers"),
        (["plan", "--recipe", "turbo-9"], "no recipe 'turbo-9'; near: turbo"),
        (["generate", "x", "--height", "100", *FAST], "height is 100; it must be a multiple of 8 pixels"),
        (["generate", "x", "--steps", "0"], "--steps is 0"),
        (["generate", "x", "--model", "no/such/folder/here"], "no/such/folder/here"),
        (["generate", "--like", "absent.png"], "absent.png: there is no such picture"),
        (["convert", "absent.safetensors", "out"], "absent.safetensors"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("distrijax: error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert captured.out == ""
    assert not [p for p in Path().iterdir() if p.suffix in (".png", ".partial")]


def test_pictures_without_settings_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8)).save("plain.png")
    Path("broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    info = PngInfo()
    info.add_itxt(METADATA, json.dumps({"steps": "many"}))
    Image.new("RGB", (8, 8)).save("edited.png", pnginfo=info)
    for name, message in (
        ("plain.png", "carries no settings"),
        ("broken.png", "cannot be read as a picture"),
        ("edited.png", "edited.png: the setting steps is 'many'"),
    ):
        assert run("generate", "--like", name) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "convert", "plan", "bench"])
def test_help_is_complete(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(command, "--help")
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    parser = commands.parsers()
    subparsers = next(a for a in parser._actions if isinstance(a.choices, dict))
    for action in subparsers.choices[command]._actions:
        assert action.help, action.dest
        assert all(option in text for option in action.option_strings)
    assert not re.search(r"\b(either|so many|besides|told)\b", text)


def test_names_of_files_are_free_and_differ(capsys: pytest.CaptureFixture[str], pipes: list["Pipe"]) -> None:
    """Different prompts may give one name, and a number at the end of a prompt looks like one that was added."""
    Path("a-cat-3.png").write_bytes(b"precious")
    assert run("generate", "a cat", "A cat!", "a cat 2", "a cat") == 0
    names = ["a-cat.png", "a-cat-2.png", "a-cat-2-2.png", "a-cat-4.png"]
    assert capsys.readouterr().out.split() == names
    assert [settings(name)["prompt"] for name in names] == ["a cat", "A cat!", "a cat 2", "a cat"]


def test_interrupting_writes_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from distrijax.pipelines.text_to_image import StableDiffusionXLPipeline

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(StableDiffusionXLPipeline, "__call__", stop)
    assert run("generate", "a red circle", *FAST) == 130
    assert capsys.readouterr().err.endswith("distrijax: interrupted\n")
    assert not list(Path().glob("*"))


def test_devices_belong_to_the_picture(capsys: pytest.CaptureFixture[str]) -> None:
    """A picture made by four devices is made again by four, virtual ones here."""
    made_by = ["--cfg", "2", "--patch", "2", "--emulate", "--warmup-steps", "0", "--mode", "stale_gn"]
    small = ["--height", "64", "--width", "64", "--steps", "3", "--seed", "5"]
    assert run("generate", "a red circle", *small, *made_by, "--verbose", "--output", "four.png") == 0
    printed = capsys.readouterr()
    assert printed.out == "four.png\n"
    assert "4 devices (data=1 x cfg=2 x patch=2), mode stale_gn; each of them\n" in printed.err
    for line in ("in a displaced step", "keys and values", "carries from step to step"):
        assert printed.err.index(line) < printed.err.index("denoising:")  # known before the steps begin
    times = re.search(
        r"^loading (\S+) s, compiling (\S+) s, merging \S+ s, encoding (\S+) s, denoising (\S+) s, decoding (\S+) s$",
        printed.err,
        re.M,
    )
    assert times
    assert float(times[2]) > 0
    made = settings("four.png")
    mesh = {"data": 1, "cfg": 2, "patch": 2, "mode": "stale_gn", "warmup_steps": 0, "emulate": True}
    assert {name: made[name] for name in mesh} == mesh
    assert run("generate", "--like", "four.png", "--quiet", "--output", "again.png") == 0
    assert settings("again.png") == made
    assert np.array_equal(pixels("again.png"), pixels("four.png"))


class Pipe:
    """Stands for the pipeline: remembers its calls, and makes grey pictures at once."""

    def __init__(self, parallel: Parallel, distilled: bool = False):
        self.parallel, self.dtype, self.seconds = parallel, np.float32, dict[str, float]()
        self.calls: list[dict[str, Any]] = []
        self.unet = SimpleNamespace(config=SimpleNamespace(time_cond_proj_dim=8 if distilled else None))
        self.vae_scale_factor, self.scheduler = 8, None
        self.set_progress_bar_config = lambda **_: None

    def __call__(self, prompt: str, **options: Any) -> Any:
        self.calls.append({"prompt": prompt, "parallel": self.parallel} | options)
        images = [Image.new("RGB", (8, 8))] * options["num_images_per_prompt"]
        return SimpleNamespace(images=images, mode=self.parallel.mode)


@pytest.fixture
def pipes(monkeypatch: pytest.MonkeyPatch) -> list[Pipe]:
    """Those that commands have loaded."""
    loaded: list[Pipe] = []

    def load(source: Any, *, parallel: Parallel, **options: Any) -> Pipe:
        loaded.append(Pipe(parallel, distilled="lcm" in str(source)))
        return loaded[-1]

    for kind in ("", "Img2Img", "Inpaint"):
        monkeypatch.setattr(getattr(generate, f"StableDiffusionXL{kind}Pipeline"), "from_pretrained", load)
    return loaded


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ([], (1, 2, 4)),
        (["--num-images", "2"], (2, 2, 2)),
        (["--guidance-scale", "1"], (1, 1, 8)),
        (["--model", "lcm"], (1, 1, 8)),  # found out only when it is loaded
    ],
)
def test_all_devices_present(options: list[str], shape: tuple[int, int, int], pipes: list[Pipe]) -> None:
    choices = ["--auto", "--mode", "sync_gn", "--warmup-steps", "2"]
    assert run("generate", "x", *choices, *options, "--output", "x.png") == 0  # eight are present, see `conftest`
    parallel = pipes[0].calls[0]["parallel"]
    assert (parallel.data, parallel.cfg, parallel.patch) == shape
    assert (parallel.mode, parallel.warmup_steps) == ("sync_gn", 2)
    made = settings(next(Path().glob("*.png")))
    assert (made["data"], made["cfg"], made["patch"]) == shape


def test_devices_of_a_picture_made_before(pipes: list[Pipe]) -> None:
    assert run("generate", "x", "--data", "2", "--patch", "4", "--num-images", "2", "--output", "x.png") == 0
    for options, expected in (
        ([], Parallel(patch=4)),  # alone, it needs no second group
        (["--num-images", "4", "--emulate"], Parallel(data=2, patch=4, emulate=True)),
        (["--patch", "3", "--mode", "no_sync"], Parallel(patch=3, mode="no_sync")),
        (["--auto", "--guidance-scale", "1"], Parallel(patch=8)),
    ):
        assert run("generate", "--like", "x-1.png", *options, "--output", "again.png", "--overwrite") == 0
        assert pipes[-1].calls[0]["parallel"] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--patch", "0"], "--patch is 0; it must be a whole number, 1 or more"),
        (["--warmup-steps", "-1"], "--warmup-steps is -1"),
        (["--patch", "16"], "takes 16 devices, but there are 8. Choose at most 8, such as --cfg 2 x --patch 4"),
        (["--mode", "async"], "mode is 'async'; it must be one of predicted, halo_sync_up"),
        (["--auto", "--patch", "2", "--emulate"], "leave out --patch and --emulate, or --auto"),
        (
            ["--data", "2", "--num-images", "3"],
            "3 pictures cannot be divided among --data 2 groups of devices; ask for 4",
        ),
        (["--cfg", "2", "--patch", "2", "--guidance-scale", "1"], "--guidance-scale is 1.0; use --cfg 1, --patch 4"),
        (
            ["--coordinator", "here:1", "--process-id", "0"],
            "--num-processes: missing; every process needs all of --coordinator and",
        ),
        (["--distributed", "--process-id", "0"], "--distributed finds the other processes by itself"),
    ],
)
def test_devices_that_cannot_be_used(
    options: list[str], message: str, pipes: list[Pipe], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", "x", *options) == 2
    assert message in capsys.readouterr().err
    assert not pipes  # before anything is loaded


@pytest.mark.parametrize("arguments", [[], ["--coordinator", "here:1", "--num-processes", "2", "--process-id", "1"]])
def test_processes_join_before_anything_asks_for_devices(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def join(*address: Any) -> None:
        raise DistrijaxError(f"joined with {address}")

    def too_early(*_: Any) -> None:
        raise AssertionError("devices were asked for before the processes had joined")

    monkeypatch.setattr(devices.processes, "initialize", join)
    for name in ("devices", "default_backend", "process_index", "process_count", "local_devices"):
        monkeypatch.setattr(jax, name, too_early)
    assert run("generate", "x", *(arguments or ["--distributed"])) == 2
    assert f"joined with {('here:1', 2, 1) if arguments else ()}" in capsys.readouterr().err


def test_nothing_touches_devices_while_it_is_imported() -> None:
    """JAX refuses to join other processes once its devices are in use."""
    command = ["generate", "x", "--distributed", "--coordinator", "here:1"]  # a mistake: it stops before anything else
    code = f"from distrijax import cli; cli.main({command!r}); from jax._src import xla_bridge as b; print(b._backends)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "leave out --coordinator" in done.stderr
    assert done.stdout == "{}\n"


def test_only_the_first_process_writes(
    pipes: list[Pipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All make the picture, of the first one's seed; a first one that cannot write stops all."""
    monkeypatch.setattr(targets.processes, "is_first", lambda: False)
    for module in (targets, generate):
        monkeypatch.setattr(module, "same_everywhere", lambda value, what: {True: 1}.get(value, 77))
    assert run("generate", "x", "--verbose") == 0
    assert pipes[0].calls[0]["seed"] == [77]
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(targets, "same_everywhere", lambda value, what: 0)
    assert run("generate", "x") == 2
    assert "the first process cannot write" in capsys.readouterr().err
    assert len(pipes) == 1
    assert not list(Path().iterdir())
    monkeypatch.setattr(targets.processes, "is_first", lambda: True)
    monkeypatch.setattr(targets, "same_everywhere", lambda value, what: int(value))
    assert run("generate", "x", "--output", "nowhere/x.png") == 2
    assert "no folder nowhere" in capsys.readouterr().err


@pytest.mark.filterwarnings("default")
def test_warnings_are_one_line(
    pipes: list[Pipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = Pipe.__call__

    def warn(self: Pipe, *arguments: Any, **options: Any) -> Any:
        warnings.warn("all 2 steps are synchronous", stacklevel=1)
        return call(self, *arguments, **options)

    monkeypatch.setattr(Pipe, "__call__", warn)
    assert run("generate", "x") == 0
    assert capsys.readouterr() == ("x.png\n", "distrijax: warning: all 2 steps are synchronous\n")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("patch is 0; it must be a whole number", "--patch is 0; it must be a whole number"),
        ("takes 4 of data=2 x cfg=2, or emulate=True to run", "takes 4 of --data 2 x --cfg 2, or --emulate to run"),
        (
            "DDIMScheduler: num_inference_steps is 0; guidance_scale 1",
            "DDIMScheduler: --steps is 0; --guidance-scale 1",
        ),
        ("the first and warmup_steps=4 more", "the first and --warmup-steps 4 more"),
        (
            "already exists; choose another name, or set overwrite",
            "already exists; choose another name, or add --overwrite",
        ),
        ("strength is 0.1; raise strength to 1", "--strength is 0.1; raise --strength to 1"),
        ("height is 9; leave out emulate", "--height is 9; leave out --emulate"),
        ("the data of an image, a seed and its mode", "the data of an image, a seed and its mode"),  # plain English
        ("--steps is 0, /tmp/mode: x, metadata=3", "--steps is 0, /tmp/mode: x, metadata=3"),
    ],
)
def test_errors_name_options(message: str, expected: str) -> None:
    parser = commands.parsers()
    names = parser.parse_args(["generate", "x"]).names
    assert in_options(message, [*names, "overwrite"]) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["generate", "x", "--steps", "many"],
            "--steps is 'many'; it must be a whole number; see distrijax generate --help",
        ),
        (["plan", "--gpu", "voodoo"], "invalid choice: 'voodoo'"),
        (["generate", "x", "--no-such"], "unrecognized arguments: --no-such"),
        ([], "COMMAND"),
    ],
)
def test_wrong_options_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("distrijax: error: ")
    assert message in line
    assert "--help" in line


def test_options_of_the_scheduler() -> None:
    """They change the checkpoint's scheduler, or the one that is asked for; a picture remembers them."""
    small = ["--height", "64", "--width", "64", *FAST]
    assert run("generate", "x", *small, "--output", "plain.png") == 0
    choices = ["--scheduler", "euler", "--karras-sigmas", "--timestep-spacing", "trailing", "--prediction-type"]
    assert run("generate", "x", *small, *choices, "epsilon", "--output", "karras.png") == 0
    made = settings("karras.png")
    assert (made["karras_sigmas"], made["timestep_spacing"], made["prediction_type"]) == (True, "trailing", "epsilon")
    assert not np.array_equal(pixels("karras.png"), pixels("plain.png"))
    assert run("generate", "--like", "karras.png", "--quiet", "--output", "again.png") == 0
    assert np.array_equal(pixels("again.png"), pixels("karras.png"))
    pipe = StableDiffusionXLPipeline.from_pretrained(MODEL, scheduler="euler", progress=False)
    options = {"use_karras_sigmas": True, "timestep_spacing": "trailing", "prediction_type": "epsilon"}
    pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, **options)
    image = pipe("x", height=64, width=64, num_inference_steps=2, seed=5, guidance_scale=5.0).images[0]
    assert np.array_equal(np.asarray(image), pixels("karras.png"))


def test_a_recipe_is_its_settings() -> None:
    """A picture has the settings, not the recipe; other options replace them."""
    small = ["--height", "64", "--width", "64", "--quiet", "--seed", "5"]
    assert run("generate", "x", *small, "--recipe", "dmd2-4", "--warmup-steps", "3", "--output", "a.png") == 0
    made = settings("a.png")
    expected = {"scheduler": "LCMScheduler", "timesteps": "999,749,499,249", "guidance_scale": 0.0, "warmup_steps": 3}
    assert expected.items() <= made.items()
    assert run("generate", "--like", "a.png", "--quiet", "--output", "again.png") == 0
    assert np.array_equal(pixels("again.png"), pixels("a.png"))
    pipe = StableDiffusionXLPipeline.from_pretrained(MODEL, scheduler="lcm", progress=False)
    call = {"timesteps": [999, 749, 499, 249], "guidance_scale": 0.0}
    assert np.array_equal(np.asarray(pipe("x", height=64, width=64, seed=5, **call).images[0]), pixels("a.png"))
    # a recipe forgets what a picture before had
    assert run("generate", "--like", "a.png", "--recipe", "lightning-2", "--quiet", "--output", "b.png") == 0
    other = settings("b.png")
    assert (other["timesteps"], other["timestep_spacing"], other["steps"]) == (None, "trailing", 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps is 0"),
        (["--guidance-rescale", "3"], "--guidance-rescale is 3.0; it must be a number from 0 to 1"),
        (["--scheduler", "euler_anc"], "euler_ancestral"),
        (["--seed", str(2**64)], "--seed is"),
        (["--output", "folder.png"], "--output: folder.png is a folder"),
        (["--output", "a" * 300 + ".png"], "cannot be written (File name too long)"),
    ],
)
def test_what_can_be_known_is_said_before_the_model_is_loaded(
    options: list[str], message: str, pipes: list[Pipe], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder.png").mkdir()
    assert run("generate", "x", *options) == 2
    assert message in capsys.readouterr().err
    assert not pipes
    assert [path.name for path in Path().iterdir()] == ["folder.png"]


@contextmanager
def nearly_full_disk(limit: int) -> Iterator[None]:
    """Let no file grow beyond a limit: what writes more gets an OSError, as from a full disk."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def test_a_full_disk_is_found_before_the_work(pipes: list[Pipe], capsys: pytest.CaptureFixture[str]) -> None:
    with nearly_full_disk(10_000):
        assert run("generate", "x") == 2
        assert "without --output: x.png cannot be written (File too large)" in capsys.readouterr().err
        assert run("generate", "x", "--output", "mine.png") == 2
        assert "--output: mine.png cannot be written" in capsys.readouterr().err
        assert run("bench", "--json", "report.json", "--model", "demo") == 2
        assert "--json: report.json cannot be written" in capsys.readouterr().err
    assert not pipes
    assert not list(Path().iterdir())


def test_a_picture_that_cannot_be_saved_is_kept(
    pipes: list[Pipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder is gone when the pictures are ready; the others of the call are kept as well."""
    call = Pipe.__call__
    folder = Path("out")

    def vanish(self: Pipe, *arguments: Any, **options: Any) -> Any:
        folder.rmdir()
        return call(self, *arguments, **options)

    monkeypatch.setattr(Pipe, "__call__", vanish)
    for directory, words in (("kept", "the picture is kept as (.*?)[;\n]"), ("absent", "so the picture is lost")):
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(Path(directory).resolve()))
        if directory == "kept":
            Path(directory).mkdir()
        assert run("generate", "x", "--num-images", "2", "--output", "out/a.png") == 2
        error = capsys.readouterr().err
        assert "out/a-1.png cannot be written (No such file or directory)" in error
        found = re.findall(words, error)
        assert len(found) == 2
        assert directory == "absent" or [settings(name)["seed"] for name in found]


def test_two_processes_with_one_prompt(pipes: list[Pipe], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process takes the name while this one is at work."""
    call = Pipe.__call__

    def other(self: Pipe, *arguments: Any, **options: Any) -> Any:
        Path("a.png").write_bytes(b"precious")
        return call(self, *arguments, **options)

    monkeypatch.setattr(Pipe, "__call__", other)
    assert run("generate", "a", "--quiet") == 0
    assert Path("a.png").read_bytes() == b"precious"
    assert settings("a-2.png")["prompt"] == "a"
    assert sorted(path.name for path in Path().iterdir()) == ["a-2.png", "a.png"]


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("Ein Fuß, gemalt", "ein-fuß-gemalt.png"),
        ("红色的圆", "红色的圆.png"),
        ("लाल वृत्त", "लाल-वृत्त.png"),  # marks belong to their letters
        ("Cafe\u0301", "café.png"),
        ("../etc: *?", "etc.png"),
        ("🙂", "picture.png"),
        ("圆" * 100, "圆" * 40 + ".png"),  # 3 bytes each
        ("a" * 100, "a" * 60 + ".png"),
    ],
)
def test_names_keep_letters_of_every_script(prompt: str, name: str, pipes: list[Pipe]) -> None:
    assert run("generate", prompt) == 0
    assert [path.name for path in Path().iterdir()] == [name]


def test_an_interrupt_while_importing_is_clean() -> None:
    """JAX takes seconds to import. An interrupt in its C code becomes an ImportError, as Python has it there."""
    code = "import os, signal, sys\nclass Stop:\n def find_spec(self, name, *_):\n  if name == 'jax':\n"
    code += "   try: os.kill(os.getpid(), signal.SIGINT)\n   except KeyboardInterrupt: raise ImportError\n"
    code += "sys.meta_path.insert(0, Stop()); from distrijax.cli import main; sys.exit(main(['generate', 'x']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "distrijax: interrupted\n")


def test_the_demo_says_what_it_can_draw(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "An astronaut riding a red horse", *FAST) == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("distrijax: warning: this model never saw the words: astronaut, riding, horse; it draws")
    assert run("generate", "", *FAST) == 0
    assert capfd.readouterr().err.startswith("distrijax: warning: this model needs a prompt; it draws one to three")
    assert run("generate", "a red circle above a blue square", *FAST, "--negative-prompt", "astronaut") == 0
    assert capfd.readouterr().err == ""
    assert run("generate", "red " * 600, *FAST) == 0
    (line,) = capfd.readouterr().err.splitlines()  # once, though two tokenizers cut it
    assert "truncated to 77 tokens" in line
    assert len(line) < 250


def test_a_disk_that_is_too_small_for_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2_000_000))
    assert run("convert", "demo", "out", "--quiet") == 2
    assert "out: takes 14 MB, but only 2 MB are free there" in capsys.readouterr().err
    assert run("convert", "demo", "out", "--dtype", "float16", "--to", "diffusers", "--quiet") == 2
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scheduler", "ddim", "--karras-sigmas"], "DDIMScheduler: unknown option use_karras_sigmas"),
        (["--timestep-spacing", "log"], "--timestep-spacing is 'log'"),
        (["--prediction-type", "flow"], "--prediction-type is 'flow'"),
        (["--scheduler", "plmz"], "'plmz' is not supported; near: PLMS"),
        (["--timesteps", "best"], "timesteps, if no numbers, is 'best'"),
        (["--timesteps", "999,5", "--scheduler", "ddim"], "custom timesteps are not supported"),
        (["--unet", "nowhere"], "nowhere: there is no such file or folder"),
    ],
)
def test_options_of_the_model_that_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", "x", *options, "--quiet") == 2
    assert message in capsys.readouterr().err


def test_parts_from_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def load(source: Any, **options: Any) -> Pipe:
        asked.update(options)
        return Pipe(options["parallel"])

    monkeypatch.setattr(generate.StableDiffusionXLPipeline, "from_pretrained", load)
    parts = {"unet": "lightning.safetensors", "config": "sdxl", "vae": "taesd", "scheduler": "lcm"}
    words = [word for name, value in parts.items() for word in (f"--{name}", value)]
    assert run("generate", "x", *words, "--quiet", "--output", "x.png") == 0
    assert {name: asked[name] for name in parts} == parts
    assert {name: settings("x.png")[name] for name in parts} == parts
