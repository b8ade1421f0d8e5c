"""The values of a run's settings, the origin of each value, and the run's name."""

import json
import os
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
    assert Densenet.choose(optimizer="momentum", batch_size=100).run_name == "mnist-optimizer=momentum-batch_size=100"


def test_the_defaults_match_a_named_network():
    config, named = Densenet.choose(), Densenet.choose(network="densenet_bc_28_12")
    for name in NETWORKS["densenet_bc_28_12"]:
        assert getattr(config, name) == getattr(named, name), name
    config, named = Densenet.choose(dataset="cifar10"), Densenet.choose(dataset="cifar10", network="densenet_cifar")
    for name in NETWORKS["densenet_cifar"]:
        assert getattr(config, name) == getattr(named, name), name


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
    ("growth_k", by_dataset(8, cifar=160), "cifar10"), ("optimizer", "momentum", "cifar10-optimizer=momentum"),
    ("total_epochs", 7, "cifar10"), ("log_dir", "elsewhere", "cifar10")])
def test_an_edit_affects_only_data_sets_whose_value_changes(monkeypatch, name, value, run_name):
    monkeypatch.setattr(Densenet, name, value)
    assert Densenet.choose(dataset="cifar10").run_name == run_name


def test_the_shipped_defaults_match_the_constants():
    """`PYTHONPATH=. python tests/record.py defaults` writes the shipped defaults."""
    names = set(Densenet.IDENTIFYING) | {"total_epochs"}
    for dataset in Densenet.DATASETS:
        constants = settings.constants_of(Densenet, dataset)
        assert json.loads(json.dumps({name: constants[name] for name in names})) == configuration.SHIPPED[dataset]


def test_every_hyperparameter_either_identifies_a_run_or_can_change():
    free = {"mode", "data_dir", "cache_dir", "digits_stand_in", "total_epochs", "memory_efficient", "devices",
            "worker_timeout", "checkpoint", "images", "json", "log_dir", "model_dir", "run_name", "checkpoint_minutes",
            "trace_step", "test_every_epoch"}
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


def test_settings_of_earlier_versions_are_converted():
    """Uses settings.json of an image folder and of MNIST as written by the previous version."""
    found = configuration.of_earlier_versions({
        "dataset": "folder", "validation_size": None, "image_size": 64, "crop_area": 1.0, "network": "densenet_folder",
        "transition_channels": None, "stem_channels": None, "growth_k": 32})
    assert found == {"dataset": "folder", "validation_size": 0.1, "image_size": 64, "crop_area": 1.0,
                     "transition_channels": 0, "stem_channels": 0, "growth_k": 32}
    assert configuration.of_earlier_versions({"dataset": "mnist", "image_size": None, "crop_area": 1.0,
                                              "network": "densenet_mnist"}) == {"dataset": "mnist"}


def test_image_size_is_refused_where_it_has_no_effect():
    with pytest.raises(UserError, match="image_size and crop_area belong to dataset=folder, not to cifar10"):
        Densenet.choose(dataset="cifar10", image_size=32)


def test_each_setting_has_a_value_on_its_line():
    """Each line has a type, a value other than None, and a comment; no second table is needed."""
    with open(os.path.abspath(Densenet.__file__), encoding="utf-8") as file:
        lines = re.findall(r"^(\w+): .*? = (.*?)  # (.+)$", file.read(), re.MULTILINE)
    assert [name for name, _, _ in lines] == list(declared(Densenet))
    assert not [name for name, value, _ in lines if "None" in value]
