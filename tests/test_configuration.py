"""The values of a run's settings, the origin of each value, and the run's name."""

import json
import os
import pathlib
import re

import pytest

import Densenet
from support import UserError, configuration, settings
from support.networks import NETWORKS
from support.settings import by_dataset, declared


def test_given_values_determine_the_run_name():
    config = Densenet.choose(["growth_k=24", "--seed=3"])
    assert (config.growth_k, config.seed, config.run_name) == (24, 3, "mnist-growth_k=24-seed=3")
    plain = Densenet.choose()
    assert plain.run_name == "mnist" and plain.given == {} and plain.origins == {}
    assert Densenet.choose(["growth_k=%d" % plain.growth_k, "total_epochs=99", "data_dir=x"]).run_name == "mnist"
    assert Densenet.choose(dataset="cifar10", precision="float32").run_name == "cifar10-precision=float32"


def test_a_named_network_and_the_papers_recipe_set_values():
    other = Densenet.choose(["network=densenet_bc_100_12", "compression=0.7"])
    assert (other.blocks, other.compression) == ((16, 16, 16), 0.7)
    assert other.run_name == "mnist-network=densenet_bc_100_12-compression=0.7"
    assert other.origins["blocks"] == "network=densenet_bc_100_12" and other.origins["compression"] == "given"
    paper = Densenet.choose(optimizer="momentum")
    assert (paper.init_learning_rate, paper.batch_size, paper.weight_decay, paper.schedule) == (0.1, 64, 1e-4, "steps")
    assert (paper.total_epochs, paper.warmup, paper.dropout_rate, paper.label_smoothing) == (300, 0.0, 0.0, 0.0)
    assert paper.origins["batch_size"] == "optimizer=momentum" and paper.run_name == "mnist-optimizer=momentum"
    assert Densenet.choose(optimizer="momentum", augmentation=False).dropout_rate == 0.2
    assert paper.shift == Densenet.choose().shift
    for dataset in ("cifar10", "cifar100"):  # section 4.1: shifted and mirrored at random, nothing hidden
        paper = Densenet.choose(dataset=dataset, optimizer="momentum")
        assert (paper.shift, paper.flip, paper.alternate_flip, paper.cutout) == (4, True, False, 0)
    assert Densenet.choose(dataset="cifar10", optimizer="momentum", cutout=8).cutout == 8
    assert Densenet.choose(optimizer="momentum", batch_size=100).run_name == "mnist-optimizer=momentum-batch_size=100"


def test_answers_are_averaged_over_no_views_that_training_does_not_show():
    def views(**given):
        config = Densenet.choose(**given)
        return config.flip_average, config.shift_average

    assert views(dataset="cifar10") == (True, 1) and views(dataset="folder") == (True, 0)
    assert views(dataset="cifar10", flip=False) == (False, 1) and views(dataset="folder", flip=False) == (False, 0)
    assert views(dataset="cifar10", shift=0) == (True, 0)
    assert views(dataset="cifar10", augmentation=False) == (False, 0)
    config = Densenet.choose(dataset="cifar10", flip=False, flip_average=True)
    assert config.flip_average and config.run_name == "cifar10-flip=False-flip_average=True"
    assert Densenet.choose(dataset="cifar10", flip=False).origins["flip_average"] == "no such views in training"
    assert Densenet.choose(augmentation=False, shift=0).origins == dict.fromkeys(["augmentation", "shift"], "given")


def test_the_defaults_match_a_named_network():
    config, named = Densenet.choose(), Densenet.choose(network="densenet_bc_28_12")
    for name in NETWORKS["densenet_bc_28_12"]:
        assert getattr(config, name) == getattr(named, name), name
    config, named = Densenet.choose(dataset="cifar10"), Densenet.choose(dataset="cifar10", network="densenet_bc_24_48")
    for name in NETWORKS["densenet_bc_24_48"]:
        assert getattr(config, name) == getattr(named, name), name


def test_a_line_that_an_edit_has_spoilt_is_named(monkeypatch):
    for prefix in ("cifra", "ifar", "cifar1000", "cifar10_"):
        with monkeypatch.context() as patched:
            patched.setattr(Densenet, "growth_k", by_dataset(12, **{prefix: 24}))
            with pytest.raises(UserError, match="growth_k in Densenet.py has a value for %s, and no data set" % prefix):
                Densenet.choose()
    kinds = {name: kind for name, kind in Densenet.__annotations__.items() if name != "growth_k"}
    monkeypatch.setattr(Densenet, "__annotations__", kinds)  # as of the line growth_k = 24
    with pytest.raises(UserError, match="growth_k in Densenet.py has lost the type between its name and ="):
        Densenet.choose(growth_k=12)


def test_edited_values_for_own_images_leave_other_data_sets_as_they_are(monkeypatch):
    monkeypatch.setattr(Densenet, "image_size", 96)
    monkeypatch.setattr(Densenet, "crop_area", 0.5)
    assert Densenet.choose().run_name == "mnist"
    assert Densenet.choose(dataset="folder", data_dir="pets").run_name == "pets-image_size=96-crop_area=0.5"
    with pytest.raises(UserError, match="image_size and crop_area belong to dataset=folder"):
        Densenet.choose(image_size=96)


@pytest.mark.parametrize("name,value,sentence", [
    ("dataset", None, "dataset must be one of"), ("data_dir", None, "data_dir must be a path"),
    ("checkpoint_minutes", None, "checkpoint_minutes must be a number"), ("growth_k", 0, "growth_k must be an integer"),
    ("growth_k", by_dataset(0, cifar=24), "growth_k must be an integer"), ("network", "typo", "network must be one of"),
])
def test_a_bad_edit_of_a_constant_is_refused(monkeypatch, name, value, sentence):
    monkeypatch.setattr(Densenet, name, value)
    with pytest.raises(UserError, match=sentence):
        Densenet.choose()


def test_an_edited_constant_changes_the_run_name(monkeypatch):
    monkeypatch.setattr(Densenet, "growth_k", 24)
    assert Densenet.choose().run_name == "mnist-growth_k=24"
    assert Densenet.choose(network="densenet_bc_100_12").growth_k == 24
    monkeypatch.setattr(Densenet, "dataset", "digits")
    assert Densenet.choose().run_name == "digits-growth_k=24"


@pytest.mark.parametrize("name, value, run_name", [
    ("growth_k", by_dataset(8, cifar=9), "cifar10-growth_k=9"), ("epsilon", 1e-4, "cifar10-epsilon=0.0001"),
    ("growth_k", by_dataset(8, cifar=48), "cifar10"), ("optimizer", "momentum", "cifar10-optimizer=momentum"),
    ("total_epochs", 7, "cifar10"), ("log_dir", "elsewhere", "cifar10")])
def test_an_edit_affects_only_data_sets_whose_value_changes(monkeypatch, name, value, run_name):
    monkeypatch.setattr(Densenet, name, value)
    assert Densenet.choose(dataset="cifar10").run_name == run_name


@pytest.mark.parametrize("name, value", [("batch_size", 50), ("total_epochs", 30), ("ema_decay", 0.0)])
def test_a_line_that_is_made_plain_is_edited_whatever_its_value(monkeypatch, name, value):
    """The value is the one that the digits have in the shipped line; the optimizer brings another one."""
    run_name = Densenet.choose(dataset="digits", optimizer="momentum", **{name: value}).run_name
    assert getattr(Densenet.choose(dataset="digits", optimizer="momentum"), name) != value or name == "ema_decay"
    monkeypatch.setattr(Densenet, name, value)
    config = Densenet.choose(dataset="digits", optimizer="momentum")
    assert getattr(config, name) == value and config.run_name == run_name


def test_the_shipped_defaults_match_the_constants():
    """`PYTHONPATH=. python tests/record.py defaults` writes the shipped defaults."""
    names = set(Densenet.IDENTIFYING) | {"total_epochs"}
    for dataset in Densenet.DATASETS:
        constants = settings.constants_of(Densenet, dataset)
        assert json.loads(json.dumps({name: constants[name] for name in names})) == configuration.SHIPPED[dataset]


def test_every_hyperparameter_either_identifies_a_run_or_can_change():
    free = {"mode", "data_dir", "cache_dir", "digits_stand_in", "total_epochs", "memory_efficient", "devices",
            "worker_timeout", "checkpoint", "images", "json", "log_dir", "model_dir", "run_name", "checkpoint_minutes",
            "trace_step", "test_every_epoch", "handwriting", "pixel_range", "truncated_images", "heatmaps", "formats",
            "export_dir"}
    assert set(Densenet.IDENTIFYING) | free == set(declared(Densenet)) and not free & set(Densenet.IDENTIFYING)


def test_a_long_run_name_is_shortened_and_stays_distinct():
    given = dict(network="densenet_bc_100_12", optimizer="momentum", rotation=12.5, label_smoothing=0.125, shift=5,
                 weight_decay=0.00125, dropout_rate=0.125, batch_size=1000, init_learning_rate=0.0125, warmup=0.0625,
                 epsilon=0.00001, compression=0.75, transition_channels=1234)
    names = [Densenet.choose(seed=seed, **given).run_name for seed in (100, 101)]
    assert names[0] != names[1] and all(len(name) == 200 for name in names)
    assert all(name.startswith("mnist-shift=5-rotation=12.5-network=densenet_bc_100_12-") for name in names)
    assert names[0] == Densenet.choose(seed=100, **given).run_name
    assert all(settings.file_name().parse(name) == name for name in names)
    assert settings.file_name().parse("pets/") == "pets"  # as the shell completes a folder


def test_image_size_is_refused_where_it_has_no_effect():
    with pytest.raises(UserError, match="image_size and crop_area belong to dataset=folder, not to cifar10"):
        Densenet.choose(dataset="cifar10", image_size=32)


def test_each_setting_has_a_value_on_its_line():
    """Each line has a type, a value other than None, and a comment; no second table is needed."""
    with open(os.path.abspath(Densenet.__file__), encoding="utf-8") as file:
        lines = re.findall(r"^(\w+): .*? = (.*?)  # (.+)$", file.read(), re.MULTILINE)
    assert [name for name, _, _ in lines] == list(declared(Densenet))
    assert not [name for name, value, _ in lines if "None" in value]


@pytest.mark.parametrize("mode, unused", [
    ("train", {"checkpoint", "images", "json", "handwriting"}), ("evaluate", {"images", "json", "handwriting"}),
    ("export", {"images", "json", "handwriting"}), ("predict", set())])
def test_a_setting_that_a_mode_does_not_use_is_refused_by_name(mode, unused):
    values = {"checkpoint": "does/not/exist", "images": "a.png", "json": "a.json", "handwriting": True}
    for name, value in values.items():
        for arguments, options in (([], {"mode": mode, name: value}), ([], {"caller": mode, name: value}),
                                   (["mode=" + mode, "%s=%s" % (name, value)], {})):
            if name in unused:
                with pytest.raises(UserError, match="^%s belongs to mode=.*predict.*, not to mode=%s" % (name, mode)):
                    Densenet.choose(arguments, **options)
            else:
                assert getattr(Densenet.choose(arguments, **options), name)


def test_a_checkpoint_for_training_is_told_how_training_resumes():
    with pytest.raises(UserError, match="mode=evaluate, predict, export, not to mode=train: .*resumes its own run by"):
        Densenet.choose(checkpoint="best")


def test_an_edited_constant_and_an_empty_value_ask_nothing_of_a_mode(monkeypatch):
    assert Densenet.choose(["images=", "json=", "handwriting=False"]).images == ()
    monkeypatch.setattr(Densenet, "images", ("a.png",))
    monkeypatch.setattr(Densenet, "checkpoint", "dense.ckpt-3")
    assert Densenet.choose().images == ("a.png",)


def test_the_settings_of_training_may_be_repeated_in_every_mode():
    training = {name: getattr(Densenet.choose(), name) for name in declared(Densenet)
                if name not in configuration.USED_BY and name not in ("mode", "image_size", "crop_area")}
    for mode in ("train", "evaluate", "predict", "export"):
        assert Densenet.choose(mode=mode, **dict(training, run_name="a")).mode == mode


@pytest.mark.parametrize("change", [dict(pixel_range=(0, 4096)), dict(truncated_images=True)], ids=str)
def test_what_is_for_image_files_is_refused_in_training_on_others(change):
    with pytest.raises(UserError, match="^pixel_range and truncated_images are for image files, dataset=folder, not"):
        Densenet.choose(**change)
    assert Densenet.choose(mode="predict", images="a.png", **change)
    assert Densenet.choose(dataset="folder", **change)


def test_the_function_of_a_mode_sets_the_mode_and_refuses_another():
    config = Densenet.choose(caller="predict", images="a.png")
    assert config.mode == "predict" and Densenet.choose(**config.given).mode == "predict"
    assert Densenet.choose(caller="train").given == {}
    assert Densenet.choose(["mode=evaluate"], caller="evaluate").mode == "evaluate"
    for arguments in ((["mode=evaluate"],), (["mode", "=", "evaluate"],)):
        with pytest.raises(UserError, match="^train was called with mode=evaluate: call Densenet.evaluate, or "):
            Densenet.choose(*arguments, caller="train")
    with pytest.raises(UserError, match="^export was called with mode=train: call Densenet.train, or "):
        Densenet.choose(caller="export", mode="train")


def test_the_function_of_a_mode_wins_over_an_edited_mode(monkeypatch):
    monkeypatch.setattr(Densenet, "mode", "evaluate")
    assert Densenet.choose().mode == "evaluate"
    config = Densenet.choose(caller="train")
    assert config.mode == "train" and Densenet.choose(**config.given).mode == "train"


def test_edited_and_given_settings_are_told_from_the_shipped_ones(monkeypatch):
    assert Densenet.choose().edited == frozenset()
    assert Densenet.choose(optimizer="momentum").edited == {"optimizer"}  # what it brings is nobody's edit
    assert Densenet.choose(growth_k=Densenet.choose().growth_k).edited == {"growth_k"}
    monkeypatch.setattr(Densenet, "total_epochs", 7)
    assert Densenet.choose(["seed=3"]).edited == {"seed", "total_epochs"}
    monkeypatch.setattr(Densenet, "total_epochs", by_dataset(13, digits=9, cifar=46, folder=30))
    assert Densenet.choose().edited == frozenset() and Densenet.choose(dataset="digits").edited >= {"total_epochs"}


@pytest.mark.parametrize("data_dir, name", [
    ("pets", "pets"), ("a/b/pets/", "pets"), ("/", "root"), ("my photos [2019]", "my_photos__2019_"), ("v1.2", "v1_2"),
    ("mnist", "folder-mnist"), ("CIFAR10", "folder-CIFAR10"), ("folder", "folder-folder"), ("mnist2", "mnist2"),
    ("Straße-空+1", "Straße-空+1"), (".data", "_data"), ("a=1", "a_1"), ("a/..", None)])
def test_a_run_is_named_after_its_folder(folder, data_dir, name):
    name = name or os.path.basename(folder)
    config = Densenet.choose(dataset="folder", data_dir=data_dir)
    assert config.run_name == name and config.earlier_run_name == "folder"
    changed = Densenet.choose(dataset="folder", data_dir=data_dir, growth_k=24, seed=3)
    assert changed.run_name == name + "-growth_k=24-seed=3"
    assert changed.earlier_run_name == "folder-growth_k=24-seed=3"
    assert "data_dir" not in config.identifying


def test_a_run_is_named_after_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "birds").mkdir()
    monkeypatch.chdir(str(tmp_path / "birds"))
    assert Densenet.choose(dataset="folder", data_dir=".").run_name == "birds"
    assert Densenet.choose(dataset="folder", data_dir=pathlib.Path("..")).run_name == tmp_path.name
    monkeypatch.setattr(Densenet, "data_dir", "pets")
    assert Densenet.choose(dataset="folder").run_name == "pets"


def test_other_runs_have_no_earlier_name():
    assert Densenet.choose().earlier_run_name is None
    assert Densenet.choose(dataset="folder", run_name="mine").earlier_run_name is None


def test_a_long_folder_name_fits_the_file_system():
    names = [Densenet.choose(dataset="folder", data_dir="空" * 80 + end, seed=1).run_name for end in "ab"]
    assert names[0] != names[1] and all(len(name.encode()) <= 200 for name in names)
    assert all(settings.file_name().parse(name) == name for name in names)


def test_plain_sgd_keeps_the_schedule_of_the_data_set():
    for dataset in ("mnist", "cifar10", "folder"):
        plain, sgd = Densenet.choose(dataset=dataset), Densenet.choose(dataset=dataset, optimizer="sgd")
        differing = {name for name in declared(Densenet) if getattr(plain, name) != getattr(sgd, name)}
        assert differing == {"optimizer", "init_learning_rate", "weight_decay", "run_name"}
        assert (sgd.init_learning_rate, sgd.weight_decay) == (0.1, 1e-4)
        assert sgd.origins["weight_decay"] == "optimizer=sgd" and sgd.run_name.endswith("-optimizer=sgd")
    assert Densenet.choose(optimizer="sgd", augmentation=False, weight_decay=0).dropout_rate == 0.0


@pytest.mark.parametrize("name, value, sentence", [
    ("lr", 0.1, "lr is init_learning_rate here, write init_learning_rate=0.1 "),
    ("Learning-Rate", 0.1, "Learning-Rate is init_learning_rate here, write init_learning_rate=0.1 "),
    ("epochs", 3, "epochs is total_epochs here, write total_epochs=3 "), ("bs", 8, "bs is batch_size here, "),
    ("wd", 1e-4, "wd is weight_decay here, write weight_decay=0.0001 "), ("k", 24, "k is growth_k here, "),
    ("dropout", 0.2, "dropout is dropout_rate here, "), ("theta", 0.5, "theta is compression here, "),
    ("keep_prob", 0.8, "keep_prob is 1 - dropout_rate here"), ("depth", 40, "network=NAME sets the depth"),
    ("arch", "densenet121", "arch is network here, "), ("data-path", "x", "data-path is data_dir here, "),
    ("num_gpus", 2, "devices=2 is a number of GPUs"), ("logdir", "x", "write log_dir=x "),
    ("ckpt", "x", "ckpt is checkpoint here, "), ("exp_name", "x", "exp_name is run_name here, "),
    ("fp16", True, "write precision=bfloat16 or"), ("test", True, "write mode=evaluate "),
    ("predict", True, "write mode=predict "),
    ("augment", False, "augment is augmentation here, write augmentation=False "),
    ("img_size", 32, "img_size is image_size here, "), ("eps", 1e-8, "eps is epsilon here, write epsilon=1e-08 "),
    ("opt", "sgd", "opt is optimizer here, write optimizer=sgd "), ("resume", True, "the same command again resumes"),
    ("num_classes", 10, "classes, channels and normalization are found in the data"),
    ("cifar10", 1, "write dataset=cifar10 "),
    ("workers", 4, "batches are prepared by themselves"), ("momentum", 0.9, "momentum is 0.9 in optimizer=sgd"),
])
def test_the_usual_names_of_the_field_are_understood_as_hints(name, value, sentence):
    with pytest.raises(UserError) as caught:
        Densenet.choose(**{name: value})
    assert str(caught.value).startswith("there is no setting '%s': %s" % (name, sentence))


def test_each_usual_name_has_one_meaning_and_is_no_setting():
    """A hint names one setting, or is a sentence whose settings and values exist."""
    with open(os.path.abspath(configuration.__file__), encoding="utf-8") as file:
        table = file.read().partition("HINTS = {")[2].partition("}.items()")[0]
    names = [settings.squashed(name) for text in re.findall(r'"([a-z0-9_ ]+)"(?=,|\n +")', table)
             for name in text.split()]
    assert len(names) == len(set(names)) == len(configuration.HINTS)
    kinds = declared(Densenet)
    assert not set(configuration.HINTS) & {settings.squashed(name) for name in kinds}
    for hint in configuration.HINTS.values():
        assert hint in kinds or " " in hint
        for name, value in re.findall(r"\b([a-z_]+)=([a-z0-9_.,]*[a-z0-9])", hint):
            if name != "keep_prob":
                assert settings.check(name, value, kinds) is not None
