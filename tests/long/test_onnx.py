"""ONNX files, which PyTorch takes a minute to write, in another runtime."""

import pytest
import torch

from m3ae.downstream.trained import load_trained
from m3ae.models.export import export
from tests.models.test_export import compare
from tests.test_predict import corpus, models  # noqa: F401  (fixtures)


def test_onnx_files_run_elsewhere(models, tmp_path):  # noqa: F811
    """A batch or a length fixed in the file, outputs in another order, other numbers."""
    runtime = pytest.importorskip("onnxruntime")
    model = load_trained(models / "vqa").model
    written = export(model, tmp_path, onnx=True)
    files = [path for path in written if path.suffix == ".onnx"]
    assert len(files) == 4 and len(written) == 8
    programs = {}
    for file in files:
        session = runtime.InferenceSession(file)

        def run(session=session, **given: torch.Tensor) -> list[torch.Tensor]:
            found = session.run(None, {key: x.numpy() for key, x in given.items()})
            return [torch.from_numpy(array) for array in found]

        programs[file.stem] = run
    for size, length in ((1, 16), (3, 5), (17, 9)):
        compare(programs, model, size, length, 32, 80)
