"""Plans: how candidates are written, what a file may hold, which defaults fit the data."""

import dataclasses
import re
import time

import pytest

from lookfar.study.candidates import Candidate, slug, split_candidates
from lookfar.study.plan import Plan, default_folder, trial_folder
from lookfar.training import Settings


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("baseline", "baseline"),
        ("control", "control"),
        ("control(parameters=653)", "control(parameters=653)"),
        ("control( parameters = 653 ) @ layer2", "control(parameters=653)@layer2"),
        ("nonlocal", "nonlocal"),
        ("pam", "position_attention"),
        (" pam ( reduction = 4 ) @ layer3 ", "position_attention(reduction=4)@layer3"),
        ("nonlocal(mode=gaussian)@layer3", "nonlocal(mode=gaussian)@layer3"),
        ("nonlocal(zero_init=False, mode='dot_product')", "nonlocal(mode=dot_product, zero_init=False)"),
        ("nonlocal@backbone.layer*", "nonlocal@backbone.layer*"),
        ("nonlocal(mode='a@b')", "nonlocal(mode='a@b')"),
        ("nonlocal(mode='None')", "nonlocal(mode='None')"),
    ],
)
def test_candidate_is_written_one_way(text, canonical):
    candidate = Candidate.parse(text)
    assert str(candidate) == canonical
    assert Candidate.parse(canonical) == candidate


@pytest.mark.parametrize("text", ["nonlocal@", "control@layer3", "nonlokal", "nonlocal(mode=gaussian@layer3"])
def test_candidate_refuses(text):
    with pytest.raises(ValueError):
        Candidate.parse(text)


def test_lists_are_cut_outside_brackets():
    text = "nonlocal(mode=gaussian,subsample=2)@layer3, cbam ,pyramid_pooling(bins=(1, 2)),"
    assert split_candidates(text) == [
        "nonlocal(mode=gaussian,subsample=2)@layer3",
        "cbam",
        "pyramid_pooling(bins=(1, 2))",
    ]


def test_slugs_are_names_for_files_and_stay_apart(tmp_path):
    texts = [
        "nonlocal",
        "nonlocal(mode=gaussian)",
        "nonlocal(mode=gaussian)@layer3",
        "nonlocal@layer3",
        "nonlocal(scale=1)",
        "nonlocal(scale=-1)",
        "x(bins=(1, 3))",
        "x(bins=(13,))",
        "x(bins=1-3)",
    ]
    slugs = [slug(text) for text in texts]
    assert len(set(slugs)) == len(texts)
    assert slugs[2] == "nonlocal-mode-gaussian-at-layer3"
    for name in slugs:
        assert not set(name) & set(" ()=@,'/*")
    assert trial_folder(tmp_path, texts[2], 4) == tmp_path / "trials" / slugs[2] / "4"


def test_default_folders():
    names = {data: default_folder(data).as_posix() for data in ("scenes:cue", "camvid:/a/CamVid/", "~/my crops", "/")}
    assert names["scenes:cue"] == "runs/cue"
    assert names["camvid:/a/CamVid/"] == "runs/CamVid"
    assert names["~/my crops"].startswith("runs/my-crops")
    assert names["/"] == "runs/study"


def test_defaults_fit_the_data():
    lookup = Plan("scenes:lookup", ("pam",)).resolved()
    assert (lookup.blocks, lookup.host, lookup.steps, lookup.batch_size) == (("position_attention",), "small", 1000, 32)
    assert (lookup.lr, lookup.schedule, lookup.output_stride) == (3e-3, "onecycle", 8)
    assert Plan("scenes:cue", ("pam",)).resolved().steps == 1200
    own = Plan("photos", ("pam",), pretrained=True).resolved()
    assert own.host != "small"
    assert own.output_stride == 16
    assert own.backbone_lr_factor is not None
    assert own.backbone_lr_factor < 1
    kept = Plan("photos", ("pam",), host="small", steps=7, batch_size=3, lr=0.1).resolved()
    assert (kept.host, kept.steps, kept.batch_size, kept.lr, kept.output_stride) == ("small", 7, 3, 0.1, 8)
    assert None not in [
        getattr(lookup, name) for name in ("accelerator", "eval_every", "log_every", "checkpoint_every")
    ]


def test_baseline_and_control_are_always_in_and_once():
    plan = Plan("scenes:lookup", ("control", "nonlocal", "baseline"), seeds=2).resolved()
    assert plan.candidates == ("baseline", "control", "nonlocal")
    assert plan.trials[:4] == [("baseline", 0), ("control", 0), ("nonlocal", 0), ("baseline", 1)]


def test_every_setting_of_training_is_in_a_plan():
    assert {f.name for f in dataclasses.fields(Settings)} <= {f.name for f in dataclasses.fields(Plan)}
    settings = Plan("scenes:lookup", ("nonlocal",), clip=1, steps=5).resolved().settings()
    assert (settings.clip, settings.steps) == (1.0, 5)


def test_file_round_trip(tmp_path):
    plan = Plan("scenes:lookup", ("nonlocal(mode=gaussian)@layer3",), size=(64, 32), ignore=(3, 4)).resolved()
    plan.save(tmp_path / "study.yaml")
    assert Plan.load(tmp_path / "study.yaml") == plan


def test_a_file_is_read_as_people_write_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data: scenes:lookup\nblocks: nonlocal, cbam\nlr: 3e-3\nsize: 48x64\nignore: 12\nseeds: 2\n")
    plan = Plan.load(path)
    assert plan == Plan("scenes:lookup", ("nonlocal", "cbam"), lr=0.003, size=(48, 64), ignore=(12,), seeds=2)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"stepz": 3}, "Did you mean steps"),
        ({"seeds": "many"}, "seeds must be a whole number, got 'many'"),
        ({"seeds": 1.5}, "seeds must be a whole number"),
        ({"seeds": 0}, "seeds must be an integer from 1 to 1000, got 0"),
        ({"seeds": True}, "seeds must be a whole number"),
        ({"seeds": None}, "seeds must be a whole number"),
        ({"pretrained": "yes"}, "pretrained must be true or false"),
        ({"size": "64x"}, "size must be height and width"),
        ({"size": "0x64"}, "size must be height and width"),
        ({"ignore": "a"}, "ignore must be whole numbers"),
        ({"blocks": []}, "name at least one block"),
        ({"blocks": None}, "does not say which blocks"),
        ({"host": 3}, "host must be text"),
    ],
)
def test_refuses_what_it_cannot_read(entry, message):
    with pytest.raises(ValueError, match=message):
        Plan.from_dict({"data": "scenes:lookup", "blocks": ["nonlocal"], **entry})


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [\n", "just words\n"])
def test_refuses_what_is_no_plan(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"study.yaml is not"):
        Plan.load(path)
    with pytest.raises(FileNotFoundError, match="no plan at"):
        Plan.load(tmp_path / "other.yaml")


def test_refuses_the_same_candidate_twice():
    with pytest.raises(ValueError, match="position_attention: the same candidate is named twice"):
        Plan("scenes:lookup", ("pam", "position_attention")).resolved()


DEEP = "size: " + "[" * 300 + "1" + "]" * 300
LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: x\nblocks: &a [cbam]\ncontrols: *a\n", "no aliases"),
        (LAUGHS, "no aliases"),
        ("".join(f"name{i}: 1\n" for i in range(100_000)), "more than 100 kB"),
        ("".join(f"n{i}: 1\n" for i in range(8000)), "no more than 2000 names and values"),
        (f"data: x\nblocks: cbam\n{DEEP}\n", "is flat"),
        ("data: x\nblocks: cbam\nseeds: 1000000000\n", "seeds must be an integer from 1 to 1000, got 1000000000"),
        (f"data: x\nblocks: cbam\nsteps: {'9' * 400}\n", "steps must be a whole number"),
        (f"data: x\nblocks: cbam\nsteps: {'9' * 9000}\n", "not the YAML of a plan"),
        ("data: x\nblocks: cbam\nsteps: 0x" + "f" * 9000 + "\n", "steps must be a whole number"),
        ("data: x\nblocks: cbam\nlr: 1e9999\n", "lr must be"),
        (f"data: x\nblocks: {','.join(['cbam'] * 3000)}\n", "blocks must be at most 500, got 3001"),
        (f"data: x\nblocks: cbam\n{'x' * 500}: 1\n", "has an entry 'xxx"),
        ("data: x\nblocks: cbam\nsteps: 4\nsteps: 40\n", "'steps' is named twice"),
        ("data: x\nblocks: cbam\n? [a, b]\n: 1\n", "not the YAML of a plan"),
        ("data: x\nblocks: cbam\nsteps: !!python/object/apply:os.system [ls]\n", "not the YAML of a plan"),
        ("data: x\nblocks: cbam\nsize: {a: 1}\n", "size must be height and width"),
        ("data: x\nblocks: cbam\nsteps: 2020-01-01\n", "steps must be a whole number"),
        ("\xff\xfe", "not the YAML of a plan"),
    ],
    ids=range(18),
)
def test_texts_that_would_keep_a_machine_busy_are_refused_at_once(tmp_path, text, message):
    path = tmp_path / "study.yaml"
    path.write_bytes(text.encode("latin-1"))
    started = time.process_time()
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        Plan.load(path).resolved().settings()
    assert time.process_time() - started < 2
    assert len(str(refused.value)) < 500
