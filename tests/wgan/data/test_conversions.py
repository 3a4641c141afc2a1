"""The conversions in datasets/README.md, each of which needs a package that may be missing."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from wgan.data import ImageOptions, load_dataset

SECTION = re.search(
    r"## Conversions(.*?)\n## ", (ROOT / "datasets" / "README.md").read_text("utf-8"), re.S
)[1]
CODE = re.findall(r"\| `([^`]*\(.*)` \|", SECTION) + re.findall(
    r"```python\n(.*?)```", SECTION, re.S
)


def convert(word, module):
    """Run the conversion that contains a word, with the package that it needs."""
    package = pytest.importorskip(module)
    (code,) = (code for code in CODE if word in code)
    assert code.count("\n") <= 6
    top = module.partition(".")[0]
    names = {"np": np, "Path": Path, top: pytest.importorskip(top), "torch": torch}
    exec(code, names | ({} if top == module else {module: package}))


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def load(name):
    return load_dataset(name, "root", ImageOptions((8, 8)))


def test_every_conversion_is_tested():
    assert len(CODE) == Path(__file__).read_text("utf-8").count("\n    convert(")


def test_torch(random):
    torch.save(torch.from_numpy(random.integers(0, 256, (9, 3, 8, 8)).astype(np.uint8)), "data.pt")
    convert("torch.load", "torch")
    assert load("data.npy").sample_shape == (3, 8, 8)


def test_matlab(random):
    scipy_io = pytest.importorskip("scipy.io")
    images = random.integers(0, 256, (8, 8, 3, 5)).astype(np.uint8)
    scipy_io.savemat("data.mat", {"X": images})
    convert("loadmat", "scipy.io")
    dataset = load("data.npy")
    assert np.array_equal(dataset.read(np.array([4]))[0], images[..., 4].transpose(2, 0, 1))


def test_hdf5(random):
    h5py = pytest.importorskip("h5py")
    with h5py.File("data.h5", "w") as file:
        file["images"] = random.integers(0, 256, (5, 8, 8)).astype(np.uint8)
    convert("h5py.File", "h5py")
    assert load("data.npy").sample_shape == (1, 8, 8)


def test_tables_with_text():
    Path("all.csv").write_text("name,a,b\nx,1,2\ny,,4\nz,5,6.5\nw,7,8\n")
    convert("select_dtypes", "pandas")
    dataset = load("numbers.csv")
    assert dataset.standardisation.columns == ("a", "b") and len(dataset) == 3


def test_dicom(random):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    Path("scan").mkdir()
    for index in range(3):
        data = pydicom.Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
        data.Rows = data.Columns = 8
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 1
        data.RescaleSlope, data.RescaleIntercept = 1, -1024 * index
        data.PixelData = random.integers(0, 100, (8, 8)).astype(np.int16).tobytes()
        data.save_as(f"scan/{index}.dcm", enforce_file_format=True)
    convert("dcmread", "pydicom.pixels")
    assert load("scan.npy").sample_shape == (1, 8, 8)
    assert np.load("scan.npy")[2].max() < -1900  # in Hounsfield units


def test_nifti(random):
    nibabel = pytest.importorskip("nibabel")
    volume = random.random((8, 8, 5), np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), "scan.nii.gz")
    convert("nibabel.load", "nibabel")
    assert np.array_equal(np.load("scan.npy")[3], volume[..., 3])
    assert load("scan.npy").sample_shape == (1, 8, 8)


def test_parquet():
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = []
    for label in (0, 1, 1):
        Image.new("RGB", (9, 9), (100 * label, 0, 0)).save(buffer := io.BytesIO(), "PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": "x.png"}, "label": label})
    parquet.write_table(pyarrow.Table.from_pylist(rows), "train.parquet")
    convert("read_table", "pyarrow.parquet")
    dataset = load("images")
    assert dataset.class_names == ("0", "1") and sorted(dataset.labels) == [0, 1, 1]
