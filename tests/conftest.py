"""The teacher of the tests of distillation, made when the first of them asks for it."""

import pytest


@pytest.fixture(scope="session")
def teacher_model():
    from toy_distillation import toy_teacher

    return toy_teacher()


@pytest.fixture(scope="session")
def teacher_folder(teacher_model, tmp_path_factory):
    from ls_keras import artifact

    folder = tmp_path_factory.mktemp("teacher") / "saved_model"
    artifact.export(teacher_model, folder)
    return folder


@pytest.fixture(scope="session")
def teacher(teacher_folder):
    from ls_keras import distillation

    from toy_distillation import SHAPE, K

    return distillation.load_teacher(teacher_folder, K, SHAPE)
