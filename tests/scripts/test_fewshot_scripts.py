"""train_fewshot.py and its runs in evaluate.py and visualize.py: files, tables, resuming, refusals."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from script_runs import SCRIPTS, as_format_1

from metarl.experiment import fewshot_presets as presets
from metarl.experiment.errors import UserError
from metarl.experiment.fewshot_config import DATASETS, check_fewshot, read_fewshot_config
from metarl.experiment.fewshot_presets import fewshot_preset
from metarl.experiment.trainer import Trainer
from metarl.fewshot.data.images import ImageClasses
from metarl.fewshot.methods import METHODS
from metarl.fewshot.sinusoid import Sinusoid
from metarl.visualize import fewshot

Run = Callable[..., tuple[int, str, str]]
WAVES = [
    *("--dataset", "sinusoid", "--hidden-sizes", "8", "8", "--meta-batch-size", "3", "--iterations", "7"),
    *("--log-every", "3", "--keep-every", "3", "--validation.every", "6", "--validation.num-tasks", "4"),
    *("--test-queries", "5", "--test-steps", "2"),
]
DIGITS = [
    *("--dataset", "digits", "--ways", "3", "--queries", "2", "--channels", "4", "--meta-batch-size", "4"),
    *("--iterations", "4", "--log-every", "2", "--validation.every", "2", "--validation.num-tasks", "4"),
    *("--test-queries", "3",),
]  # fmt: skip


def rows(run: Path) -> list[dict[str, Any]]:
    """Metrics without the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


@pytest.fixture
def waves(run_script: Run, tmp_path: Path) -> Path:
    path = tmp_path / "waves"
    code, _, errors = run_script("train_fewshot", "maml", *WAVES, "--run-dir", path)
    assert (code, errors) == (0, "")
    return path


def test_a_run_leaves_lines_checkpoints_events_and_a_table(run_script: Run, waves: Path) -> None:
    assert [row["iteration"] for row in rows(waves)] == [3, 6, 7]
    assert ["validation/score" in row for row in rows(waves)] == [False, True, True]
    names = sorted(path.stem for path in (waves / "checkpoints").glob("*.pt"))
    assert names == ["best", "iteration_3", "iteration_6", "last"]
    assert list(waves.glob("events.*"))
    out = waves.with_name("table.json")
    code, text, _ = run_script("evaluate", waves, "--num-tasks", 20, "--json", out)
    record = json.loads(out.read_text())
    assert code == 0 and "published: MAML" in text and "0.67" in text
    assert (record["metric"], record["higher_is_better"]) == ("mean squared error", False)
    assert (record["family"], record["variant"], record["steps"], record["num_tasks"]) == ("sinusoid", "5-shot", 2, 20)
    per_task = torch.tensor(record["per_task"])
    assert per_task.shape == (20, 3)
    torch.testing.assert_close(torch.tensor(record["return_mean"]), per_task.mean(0))
    code, text, _ = run_script("evaluate", waves, "--num-tasks", 20, "--shots", 10, "--steps", 1)
    assert code == 0 and "10-shot" in text and "published" not in text


def test_own_images_do_not_stand_beside_published_numbers(
    run_script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the layout of mini-ImageNet, five classes of three pictures in each split."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data, run = tmp_path / "data", tmp_path / "run"
    for split in ("train", "val", "test"):
        for kind in range(5):
            (data / split / f"{split}{kind}").mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (8, 8), (50 * kind, 20 * number, 0)).save(data / split / f"{split}{kind}/{number}.png")
    size = ("--channels", 2, "--queries", 1, "--test-queries", 2, "--iterations", 1, "--validation.num-tasks", 1)
    code, _, errors = run_script(
        "train_fewshot", "prototypical", "--dataset", "mini-imagenet", "--data-dir", data, *size, "--run-dir", run
    )
    assert (code, errors) == (0, "")
    code, text, _ = run_script("evaluate", run, "--num-tasks", 2)
    assert code == 0 and "accuracy in %" in text and "published:" not in text
    assert "published numbers are left out" in text and "5 / 5 / 5 classes" in text


@pytest.mark.parametrize("stop_at", [3, 6])
def test_a_run_that_was_stopped_continues_bitwise(
    run_script: Run, waves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    save, parts = Trainer._save_checkpoints, tmp_path / "parts"

    def stopped(self: Trainer) -> None:
        save(self)
        if self.learner.iteration == stop_at:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoints", stopped)
        code, text, _ = run_script("train_fewshot", "maml", *WAVES, "--run-dir", parts)
    assert code == 130 and "train_fewshot.py --resume" in text
    assert run_script("train_fewshot", "--resume", parts)[0] == 0
    assert rows(parts) == rows(waves)
    states = [torch.load(run / "checkpoints" / "last.pt", weights_only=True) for run in (waves, parts)]
    flat = [torch.utils._pytree.tree_flatten(state)[0] for state in states]
    for a, b in zip(*flat, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_on_images_and_is_shown(
    run_script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(fewshot, "EVALUATION_TASKS", 10)
    run, sheet = tmp_path / "run", tmp_path / "run" / "figures" / "task_0.png"
    code, _, errors = run_script("train_fewshot", name, *DIGITS, "--batch-norm", "running", "--run-dir", run)
    assert (code, errors) == (0, "")
    assert read_fewshot_config(run).method == name
    code, text, _ = run_script("visualize", run, "--tasks", 1)
    assert code == 0 and "accuracy" in text
    with Image.open(sheet) as image:
        assert image.width > 800 and len(image.getcolors(1 << 24)) > 10
    code, text, _ = run_script("evaluate", run, "--num-tasks", 5)
    assert code == 0 and "accuracy in %" in text
    if not METHODS[name].takes_steps:
        code, _, errors = run_script("evaluate", run, "--steps", 1)
        assert code == 2 and f"{name} ({run}) takes no steps" in errors


@pytest.mark.parametrize("ways", [5, 20])
@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("method", METHODS)
def test_every_recommended_run_is_allowed(method: str, dataset: str, ways: int) -> None:
    config = fewshot_preset(method, dataset, ways if dataset != "sinusoid" else 5)
    if dataset == "sinusoid" and not METHODS[method].regression:
        with pytest.raises(UserError, match="cannot do regression"):
            check_fewshot(config)
    else:
        check_fewshot(config)


def test_training_validation_and_test_take_their_own_splits(
    run_script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the best checkpoint of a regression is the one of the smallest validation error."""
    drawn: list[tuple[str, int]] = []
    sample = Sinusoid.sample

    def recorded(self: Sinusoid, num_tasks: int, split: str, seed: int, start: int = 0) -> Any:
        drawn.append((split, start))
        return sample(self, num_tasks, split, seed, start)  # pyright: ignore

    monkeypatch.setattr(Sinusoid, "sample", recorded)
    run = tmp_path / "run"
    assert run_script("train_fewshot", "maml", *WAVES, "--outer-lr", "3", "--run-dir", run)[0] == 0
    assert [start for split, start in drawn if split == "train"] == [3 * i for i in range(7)]
    assert {split for split, _ in drawn} == {"train", "validation"}
    drawn.clear()
    assert run_script("evaluate", run, "--num-tasks", 10)[0] == 0
    assert {split for split, _ in drawn} == {"test"}
    validated = [row for row in rows(run) if "validation/score" in row]
    errors = {row["iteration"]: row["validation/score_step_1"] + row["validation/score_step_2"] for row in validated}
    best = torch.load(run / "checkpoints" / "best.pt", weights_only=True)["learner"]["iteration"]
    assert len(errors) == 2 and best == min(errors, key=errors.__getitem__)


def test_lines_end_where_something_is_to_be_validated_or_kept(run_script: Run, tmp_path: Path) -> None:
    run, often = tmp_path / "run", ("--log-every", 5, "--validation.every", 2, "--keep-every", 3)
    assert run_script("train_fewshot", "maml", *WAVES, *often, "--run-dir", run)[0] == 0
    assert [row["iteration"] for row in rows(run)] == [2, 3, 4, 5, 6, 7]
    assert [row["iteration"] for row in rows(run) if "validation/score" in row] == [2, 4, 6, 7]
    assert {"iteration_3", "iteration_6"} < {path.stem for path in (run / "checkpoints").glob("*.pt")}


def test_accuracies_are_told_in_per_cent_and_snail_reads_no_more_than_it_was_built_for(
    run_script: Run, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    run, out = tmp_path / "run", tmp_path / "table.json"
    assert run_script("train_fewshot", "snail", *DIGITS, "--test-shots", 2, "--run-dir", run)[0] == 0
    code, text, _ = run_script("evaluate", run, "--num-tasks", 30, "--json", out)
    mean = json.loads(out.read_text())["return_mean"][-1]
    assert code == 0 and 0.1 < mean < 1 and f"{100 * mean:.2f}" in text and "3-way 2-shot" in text
    code, _, errors = run_script("evaluate", run, "--shots", 3)
    assert code == 2 and errors.startswith("error: --shots: ") and errors.count("\n") == 1


def test_other_data_than_a_run_was_trained_on_are_noticed(
    run_script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    run = tmp_path / "run"
    assert run_script("train_fewshot", "prototypical", *DIGITS, "--run-dir", run)[0] == 0
    monkeypatch.setattr(ImageClasses, "fingerprint", "another")
    for arguments in (("evaluate", run), ("train_fewshot", "--resume", run, "--iterations", 6)):
        code, _, errors = run_script(*arguments)
        assert code == 2 and "not the same classes and images" in errors


def test_a_falling_step_size_is_said_to_change_with_more_iterations(run_script: Run, waves: Path) -> None:
    code, _, errors = run_script("train_fewshot", "--resume", waves, "--iterations", 8)
    assert (code, errors) == (0, "")
    other = waves.with_name("falling")
    assert run_script("train_fewshot", "maml", *WAVES, "--outer-lr-decay", 1, "--run-dir", other)[0] == 0
    code, _, errors = run_script("train_fewshot", "--resume", other, "--iterations", 8)
    assert code == 0 and errors.startswith("note: the outer step size falls") and errors.count("\n") == 1


def test_sine_waves_are_shown_with_their_fits(run_script: Run, waves: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fewshot, "EVALUATION_TASKS", 10)
    code, text, _ = run_script("visualize", waves, "--tasks", 3)
    assert code == 0
    assert all(name in text for name in ("fits.png", "adaptation_curve.png", "training_curve.png"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("mamml",), "did you mean maml"),
        (("maml", "--dataset", "glyph"), "did you mean glyphs"),
        (("matching", "--dataset", "sinusoid"), "matching compares classes and cannot do regression"),
        (("--dataset", "sinusoid", "reptile"), "reptile must stand before the flags"),
        (("maml", "--dataset", "sinusoid", "--ways", "7"), "--ways is 7; sinusoid does not read it"),
        (("maml", "--hidden-sizes", "3"), "glyphs does not read it"),
        (("siamese", "--test-steps", "5"), "--test-steps is 5; siamese does not read it"),
        (("maml", "--dataset", "omniglot"), "--data-dir says"),
        (("maml", "--dataset", "omniglot", "--data-dir", "/nowhere"), "/nowhere"),
        (("maml", "--dataset", "mini-imagenet", "--data-dir", "/nowhere"), "/nowhere"),
        (("maml", "--test-steps", "100000000"), "--test-steps is 100000000; it must be between 0 and 1000"),
        (("maml", "--adapted", "context"), "--adapted is context; no network"),
        (("maml", "--ways", "1"), "--ways is 1; it must be 2 or more"),
        (("maml", "--shots", "0"), "--shots is 0; it must be positive"),
        (("maml", "--margin", "2"), "--margin is 2.0; maml does not read it"),
        (("maml", "--outer-lr-decay", "2"), "--outer-lr-decay is 2.0; it must be between 0 and 1"),
        (("maml", "--dataset", "digits", "--ways", "6"), "5 classes in its train split, and a task needs 6"),
        (("meta-lstm", "--dataset", "sinusoid", "--inner-lr", "2"), "between 0 and 1"),
        (("maml", "--hidden-sizes"), "--hidden-sizes is empty"),
        (("snail", "--attention-keys", "64", "1"), "--attention-keys is 64 1; each must be 2 or more"),
        (("maml", "--tc-filters", "8"), "--tc-filters is 8; maml does not read it"),
        (("--resume", "/nowhere"), "/nowhere is not a run"),
    ],
)
def test_bad_input_gets_one_sentence(run_script: Run, tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    if "digits" in arguments:
        pytest.importorskip("sklearn")
    directory = () if "--resume" in arguments else ("--run-dir", tmp_path / "run")
    code, _, errors = run_script("train_fewshot", *arguments, *directory)
    assert code == 2 and errors.startswith("error: ") and errors.count("\n") == 1 and says in errors
    assert not (tmp_path / "run").exists()


def test_runs_of_the_two_kinds_are_told_apart(run_script: Run, waves: Path, finished: Path) -> None:
    for arguments, says in (
        (("train", "--resume", waves), "is a few-shot run"),
        (("train_fewshot", "--resume", finished), "is a run of train.py"),
        (("evaluate", waves, finished), "is a run of train.py"),
        (("evaluate", finished, "--shots", 3), "--shots is for few-shot runs"),
        (("evaluate", waves, "--episodes", 3), "--episodes and --device are for policies"),
        (("train_fewshot", "--resume", waves, "--shots", 3), "only --iterations may change"),
        (("train_fewshot", "prototypical", "--resume", waves), "not those under method"),
        (("evaluate", waves, "--steps", 2000), "--steps is 2000; it must be at most 1000"),
        (("visualize", waves, "--steps", 2000), "--steps is 2000; it must be at most 1000"),
    ):
        code, _, errors = run_script(*arguments)
        assert code == 2 and says in errors, (arguments, errors)


def test_damaged_checkpoints_and_configs_are_refused(run_script: Run, waves: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(waves, tmp_path / "other"))
    file = other / "checkpoints" / "best.pt"
    state = torch.load(file, weights_only=True)
    name = next(iter(state["learner"]["params"]))
    state["learner"]["params"][name] = state["learner"]["params"][name][:1]
    torch.save(state, file)
    as_format_1(file)
    code, _, errors = run_script("evaluate", other)
    assert code == 2 and "does not fit this run" in errors
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"method": "magic"}))
    code, _, errors = run_script("evaluate", other)
    assert code == 2 and "unknown method 'magic'" in errors


def test_a_replicated_accuracy_is_that_after_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from _replicate_fewshot import summary_row

    per_task = [[[0.2, 0.9], [0.3, 0.7]], [[0.1, 0.5], [0.2, 0.7]]]
    records = [{"per_task": values, "steps": 1, "training_cpu_seconds": 3.0} for values in per_task]
    name, accuracy, interval, words = summary_row("maml", records)
    assert (name, accuracy) == ("maml", pytest.approx(0.7)) and interval > 0 and "after 1 steps, 3 CPU-s" in words


def test_the_lists_name_methods_and_data_sets(run_script: Run) -> None:
    code, text, _ = run_script("train_fewshot", "--list")
    assert code == 0 and all(name in text for name in (*METHODS, "mini-imagenet", "maml-trpo"))


def test_replication_of_one_method_continues(run_script: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"iterations": 20, "network": {"channels": 4}, "learner": {"meta_batch_size": 4}, "validation": {"every": 0}}
    monkeypatch.setattr(presets, "_FOR_BOTH", {("prototypical", "glyphs"): tiny})
    monkeypatch.setattr(presets, "_TWENTY_WAYS", {})
    run = ("replicate", "fewshot", "--quick", "--seeds", 1, "--learners", "prototypical", "--out", tmp_path)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr("_replicate_fewshot.EVALUATION_TASKS", 10)
    code, text, errors = run_script(*run, "--json", tmp_path / "table.json")
    assert (code, errors) == (0, "")
    assert all(word in text for word in ("chance", "nearest neighbour in pixels", "20-way", "CPU-s of training"))
    results = json.loads((tmp_path / "table.json").read_text())
    assert len(results["5-way 1-shot prototypical"]) == 1
    code, again, _ = run_script(*run)
    assert code == 0 and "training iterations 2 to 2" in again
