"""Brain extraction by installed programs, played by small scripts that behave, fail, hang, download or lie."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from MSTKDSegmentLib import guarded_program, specialists
from MSTKDSegmentLib.child_python import LIBRARY_PARENT
from MSTKDSegmentLib.errors import Cancelled
from MSTKDSegmentLib.guarded_program import FOLDER_PREFIX, without_folders
from MSTKDSegmentLib.specialists import KEYS, Command, Specialist, SpecialistFailed, extract, installed
from phantom import IDENTITY, OBLIQUE, blank_image, dice, ellipsoid, voxel_points
from processes import alive

posix = pytest.mark.skipif(os.name == "nt", reason="scripts with a first line that names their interpreter")
RADII = np.array([60.0, 75.0, 55.0])  # mm: 1037 ml
BRAIN_ML = 4 / 3 * np.pi * np.prod(RADII) / 1000
PACKAGES = ("HD_BET", "nnunetv2", "skimage", "nipreps", "nitransforms", "deepbet", "cc3d", "fill_voids", "tqdm")

# What a well-behaved program does with the image and the mask that it is given: what is bright is brain.
MARK = """
def mark(image, mask):
    import SimpleITK as sitk
    sitk.WriteImage(sitk.ReadImage(image) > 50, mask)
"""
SYNTHSTRIP = (
    MARK
    + """
import argparse, os
parser = argparse.ArgumentParser()
parser.add_argument("-i", required=True)
parser.add_argument("-m", required=True)
parser.add_argument("--model")
known = parser.parse_args()
assert os.path.isfile(known.model or os.path.join(os.environ["FREESURFER_HOME"], "models", "synthstrip.1.pt"))
print("Configuring model on the CPU")
mark(known.i, known.m)
"""
)


@pytest.fixture(autouse=True)
def computer(tmp_path, monkeypatch):
    """A computer on which nothing is installed but what the test puts there; temporary files go to `tmp`."""
    for folder in ("bin", "packages", "home", "tmp"):
        (tmp_path / folder).mkdir()
    for name in ("FREESURFER_HOME", "CUDA_VISIBLE_DEVICES", "APPLAUNCHER_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    real = importlib.util.find_spec

    def find_spec(name, package=None):
        if name in PACKAGES and not list((tmp_path / "packages").glob(f"{name}*")):
            return None  # what the developer's own Python has
        return real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    return tmp_path


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def program(path: Path, body: str) -> Path:
    write(path, f"#!{sys.executable}\n{textwrap.dedent(body)}").chmod(0o755)
    return path


def packages(computer: Path, *names: str) -> None:
    for name in names:
        write(computer / "packages" / name / "__init__.py")


def install_hd_bet_2(computer: Path, version: str = "2.0.1") -> None:
    """The layout, options, output names and processes of the package."""
    packages(computer, "HD_BET", "nnunetv2")
    body = """
        import argparse, multiprocessing

        def main():
            parser = argparse.ArgumentParser()
            parser.add_argument("-i"), parser.add_argument("-o"), parser.add_argument("-device", default="cuda")
            for flag in ("--disable_tta", "--save_bet_mask", "--no_bet_image"):
                parser.add_argument(flag, action="store_true")
            known = parser.parse_args()
            assert known.device == "cpu" and known.disable_tta and known.save_bet_mask
            assert known.i.endswith(".nii.gz") and known.o.endswith(".nii.gz")
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                pool.apply(mark, (known.i, known.o[:-7] + "_bet.nii.gz"))

        if __name__ == "__main__":
            main()
    """
    write(computer / "packages" / "HD_BET" / "entry_point.py", MARK + textwrap.dedent(body))
    write(computer / "packages" / f"hd_bet-{version}.dist-info" / "METADATA", f"Name: HD_BET\nVersion: {version}\n")
    write(computer / "home" / "hd-bet_params" / "release_2.0.0" / "fold_all" / "checkpoint_final.pth")


def install_hd_bet_1(computer: Path, networks: int = 5) -> None:
    """As Slicer's extension does it: the package's folder alone."""
    packages(computer, "HD_BET", "skimage")
    body = """
        import json
        def run_hd_bet(mri_fnames, output_fnames, mode="accurate", config_file=None, device=0, postprocess=False,
                       do_tta=True, keep_mask=True, overwrite=True, bet=False):
            print(json.dumps([mode, device, postprocess, do_tta]))
            mark(mri_fnames, output_fnames[:-7] + "_mask.nii.gz")
    """
    write(computer / "packages" / "HD_BET" / "run.py", MARK + textwrap.dedent(body))
    for number in range(networks):
        write(computer / "home" / "hd-bet_params" / f"{number}.model")


def install_freesurfer(computer: Path, body: str = SYNTHSTRIP) -> Path:
    home = computer / "freesurfer"
    write(home / "models" / "synthstrip.1.pt")
    write(home / "build-stamp.txt", "freesurfer-linux-ubuntu22_x86_64-7.4.1-20230614-7eb8460\n")
    return program(home / "bin" / "mri_synthstrip", body)


def install_deepbet(computer: Path) -> None:
    packages(computer, "cc3d", "fill_voids", "nibabel", "pandas", "torch", "tqdm")
    body = """
        def run_bet(input_paths, brain_paths=None, mask_paths=None, tiv_paths=None, threshold=.5, n_dilate=0,
                    no_gpu=False, skip_broken=True):
            assert no_gpu and not skip_broken
            mark(input_paths[0], mask_paths[0])
    """
    write(computer / "packages" / "deepbet" / "__init__.py", MARK + textwrap.dedent(body))
    for name in ("model.pt", "bbox_model.pt"):
        write(computer / "packages" / "data" / "models" / name)


def scripted(computer: Path, body: str, *, cpu: tuple[str, ...] = ()) -> Specialist:
    """A specialist that runs `body` with the paths of the image and the mask as `image` and `mask`."""
    path = write(
        computer / "script.py", MARK + "import os, sys, time\nimage, mask = sys.argv[1:3]\n" + textwrap.dedent(body)
    )
    arguments = (sys.executable, str(path), "{folder}/image.nii", "{folder}/mask.nii.gz")
    return Specialist("hd-bet", "Scripted 1.0", ("T1",), Command(arguments, cpu=cpu))


def head(direction=IDENTITY, spacing=(3.0, 3.0, 3.0), extent=180.0) -> tuple[sitk.Image, np.ndarray]:
    """A volume in which the brain has 100 and all else 20, and the brain (D, H, W)."""
    image = blank_image(direction, spacing, extent)
    brain = ellipsoid(voxel_points(image), voxel_points(image).mean((0, 1, 2)), RADII)
    volume = sitk.GetImageFromArray(np.where(brain, 100.0, 20.0).astype(np.float32))
    volume.CopyInformation(image)
    return volume, brain


def left_behind(computer: Path) -> list[Path]:
    return list((computer / "tmp").iterdir())


def wait_for(condition, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(condition())


# --- Which are installed ---


def test_on_a_computer_without_any_there_is_none():
    assert installed() == []


@posix
def test_all_of_them_come_in_the_order_of_preference(computer, monkeypatch):
    install_deepbet(computer)
    monkeypatch.setenv("FREESURFER_HOME", str(install_freesurfer(computer).parent.parent))
    install_hd_bet_2(computer)
    found = installed()
    assert tuple(one.key for one in found) == KEYS
    assert [one.title for one in found] == ["HD-BET 2.0.1", "SynthStrip (FreeSurfer 7.4.1)", "deepbet"]
    assert [one.sequences for one in found] == [("T1", "T1Gd", "T2", "FLAIR")] * 2 + [("T1",)]


def test_hd_bet_2_without_its_weights_or_nnunet_would_download_or_fail(computer):
    install_hd_bet_2(computer)
    assert [one.key for one in installed()] == ["hd-bet"]
    weights = computer / "home" / "hd-bet_params" / "release_2.0.0" / "fold_all" / "checkpoint_final.pth"
    weights.rename(weights.with_suffix(".part"))
    assert installed() == []
    weights.with_suffix(".part").rename(weights)
    (computer / "packages" / "nnunetv2" / "__init__.py").unlink()
    (computer / "packages" / "nnunetv2").rmdir()
    assert installed() == []


def test_the_weights_of_the_other_version_are_no_use(computer):
    install_hd_bet_1(computer)
    (computer / "home" / "hd-bet_params" / "0.model").unlink()
    write(computer / "home" / "hd-bet_params" / "release_2.0.0" / "fold_all" / "checkpoint_final.pth")
    assert installed() == []


def test_slicers_hd_bet_is_told_from_version_2_by_its_files(computer):
    install_hd_bet_1(computer)
    write(computer / "packages" / "hd_bet-2.0.1.dist-info" / "METADATA", "Name: HD_BET\nVersion: 2.0.1\n")
    assert [one.title for one in installed()] == ["HD-BET 1"]


@pytest.mark.parametrize(("networks", "mode"), [(5, "accurate"), (1, "fast"), (4, "fast")])
def test_hd_bet_1_averages_its_networks_on_a_gpu_where_all_are_there(computer, networks, mode):
    install_hd_bet_1(computer, networks)
    command = installed()[0].command
    assert command.cuda[command.cuda.index("-mode") + 1] == mode
    assert command.cpu[command.cpu.index("-mode") + 1] == "fast"


@posix
@pytest.mark.parametrize(
    ("information", "weights", "title"),
    [
        ("HD_BET-2.0.1.dist-info", "release_2.0.0/fold_all/checkpoint_final.pth", "HD-BET 2.0.1"),
        ("HD_BET-1.1.dist-info", "0.model", "HD-BET 1.1"),
        ("HD_BET-1.0.egg-info", "0.model", "HD-BET 1.0"),
        ("HD_BET-1.1.dist-info", "release_2.0.0/fold_all/checkpoint_final.pth", None),
        (None, "release_2.0.0/fold_all/checkpoint_final.pth", "HD-BET 2"),
        (None, "0.model", "HD-BET 1"),
    ],
)
def test_the_script_of_another_python_is_found_with_its_version(computer, information, weights, title):
    script = program(computer / "other" / "bin" / "hd-bet", "")
    (computer / "bin" / "hd-bet").symlink_to(script)  # as pipx does
    if information:
        (computer / "other" / "lib" / "python3.12" / "site-packages" / information).mkdir(parents=True)
    write(computer / "home" / "hd-bet_params" / weights)
    assert [one.title for one in installed()] == ([title] if title else [])


@posix
def test_synthstrip_needs_its_weights(computer):
    install_freesurfer(computer).parent.rename(computer / "elsewhere")
    (computer / "bin" / "mri_synthstrip").symlink_to(computer / "elsewhere" / "mri_synthstrip")
    assert installed() == []  # perhaps a container's script, which would fetch the container


@posix
@pytest.mark.parametrize("layout", ["FREESURFER_HOME", "PATH", "container"])
def test_synthstrip_is_found_where_freesurfer_puts_it(computer, monkeypatch, layout):
    found = install_freesurfer(computer)
    home = found.parent.parent
    if layout == "FREESURFER_HOME":
        monkeypatch.setenv("FREESURFER_HOME", str(home))
    elif layout == "PATH":
        (computer / "bin" / "mri_synthstrip").symlink_to(found)
    else:
        monkeypatch.setenv("PATH", str(home))
        found.rename(home / "mri_synthstrip")
    (one,) = installed()
    assert one.title == "SynthStrip (FreeSurfer 7.4.1)"
    image, brain = head()
    assert np.array_equal(extract(one, image, "cpu"), brain)


@posix
@pytest.mark.parametrize("where", ["package", "script"])
def test_nipreps_synthstrip_works_with_freesurfers_weights_alone(computer, monkeypatch, where):
    home = install_freesurfer(computer).parent.parent
    (home / "bin" / "mri_synthstrip").unlink()
    if where == "script":
        program(computer / "bin" / "nipreps-synthstrip", SYNTHSTRIP)
    else:
        packages(computer, "nibabel", "nitransforms", "scipy", "torch")
        write(computer / "packages" / "nipreps" / "synthstrip" / "__init__.py", "raise SystemExit('imported')")
    cli = write(computer / "packages" / "nipreps" / "synthstrip" / "cli.py", SYNTHSTRIP) if where == "package" else None
    assert installed() == []  # it brings no weights and downloads none: it only fails
    monkeypatch.setenv("FREESURFER_HOME", str(home))
    (one,) = installed()
    assert one.title == "SynthStrip (nipreps)"
    if cli is not None:
        write(cli.with_name("__init__.py"))
    image, brain = head()
    assert np.array_equal(extract(one, image, "cpu"), brain)


def test_deepbet_needs_its_dependencies_and_its_networks(computer):
    install_deepbet(computer)
    assert [one.key for one in installed()] == ["deepbet"]
    (computer / "packages" / "data" / "models" / "bbox_model.pt").unlink()
    assert installed() == []
    install_deepbet(computer)
    (computer / "packages" / "fill_voids" / "__init__.py").unlink()
    (computer / "packages" / "fill_voids").rmdir()
    assert installed() == []


def test_the_reference_comes_first_and_others_with_a_skull_after_it(computer):
    install_deepbet(computer)
    (deepbet,) = specialists.usable("auto", "T1Gd", ["T1", "T1Gd", "FLAIR"])
    assert deepbet.sequence == "T1" and deepbet.title("T1Gd") == "deepbet on T1" and deepbet.title("T1") == "deepbet"
    assert specialists.usable("auto", "T1Gd", ["T1Gd", "FLAIR"]) == []  # no T1, or one without its skull
    assert specialists.usable("hd-bet", "T1Gd", ["T1", "T1Gd"]) == []
    install_hd_bet_2(computer)
    both = specialists.usable("auto", "T1Gd", ["T1", "T1Gd"])
    assert [(use.program.key, use.sequence) for use in both] == [("hd-bet", "T1Gd"), ("deepbet", "T1")]
    both = specialists.usable("auto", "T1", ["T1", "T1Gd"])
    assert [(use.program.key, use.sequence) for use in both] == [("hd-bet", "T1"), ("deepbet", "T1")]
    assert specialists.usable("deepbet", "T1Gd", ["T1", "T1Gd"]) == [deepbet]


def test_of_those_that_take_no_reference_none_goes_before_one_that_does(monkeypatch):
    only_t1, all_four = (Specialist(key, key, taken, Command(())) for key, taken in (("a", ("T1",)), ("b", ("FLAIR",))))
    monkeypatch.setattr(specialists, "installed", lambda: [only_t1, all_four])
    uses = specialists.usable("auto", "FLAIR", ["T1", "FLAIR"])
    assert [(use.program.key, use.sequence) for use in uses] == [("b", "FLAIR"), ("a", "T1")]


# --- What they give ---


@pytest.mark.parametrize("install", [install_hd_bet_2, install_hd_bet_1, install_deepbet])
def test_a_package_of_this_python_is_run_with_its_own_options(computer, install):
    install(computer)
    (one,) = installed()
    image, brain = head(spacing=(2.0, 3.0, 4.0))
    texts = []
    assert np.array_equal(extract(one, image, "cpu", progress=texts.append), brain)
    assert texts[0] == f"{one.title} looks for the brain (0 s)"
    assert left_behind(computer) == []


SHEARED = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, np.sin(0.2)], [0.0, 0.0, np.cos(0.2)]])


@pytest.mark.parametrize("direction", [IDENTITY, OBLIQUE, OBLIQUE[:, [2, 0, 1]] * [-1, 1, -1]])
def test_the_mask_lies_on_the_grid_of_the_image_whichever_way_its_axes_run(computer, direction):
    image, brain = head(direction, (3.0, 4.0, 2.5))
    mask = extract(scripted(computer, "mark(image, mask)"), image, "cpu")
    assert mask.dtype == bool
    assert np.array_equal(mask, brain)


def test_a_sheared_volume_is_straightened_for_the_program(computer):
    image, brain = head(SHEARED, (3.0, 4.0, 2.5))
    assert dice(extract(scripted(computer, "mark(image, mask)"), image, "cpu"), brain) > 0.98


def test_the_program_gets_the_axes_in_the_order_of_the_mni_templates(computer):
    body = """
        import SimpleITK as sitk
        picture = sitk.ReadImage(image)
        print(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(picture.GetDirection()))
    """
    with pytest.raises(SpecialistFailed, match="LAS"):
        extract(scripted(computer, body), head(OBLIQUE[:, [2, 0, 1]])[0], "cpu")


def test_a_mask_on_another_grid_is_brought_back_by_its_place_in_the_patient(computer):
    body = """
        import SimpleITK as sitk
        found = sitk.ReadImage(image) > 50
        size = [int(n * s + 20) for n, s in zip(found.GetSize(), found.GetSpacing())]
        shifted = [value + sign * -7.3 for value, sign in zip(found.GetOrigin(), found.GetDirection()[::4])]
        sitk.WriteImage(sitk.Resample(found, size, sitk.Transform(), sitk.sitkNearestNeighbor, shifted,
                                      (1.0, 1.0, 1.0), found.GetDirection()), mask)
    """
    image, brain = head()
    mask = extract(scripted(computer, body), image, "cpu")
    assert mask.shape == brain.shape
    assert dice(mask, brain) > 0.999


# --- What goes wrong ---

FAR_AWAY = """
import SimpleITK as sitk
found = sitk.ReadImage(image) > 50
found.SetOrigin([900] * 3)
sitk.WriteImage(found, mask)
"""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise RuntimeError('CUDA out of\\nmemory')", r"failed \(exit code 1\); it said last: memory"),
        ("print('no such option'); sys.exit(2)", r"failed \(exit code 2\); it said last: no such option"),
        ("sys.exit(3)", r"failed \(exit code 3\)\.$"),
        ("print('ERROR\\nCould not read file')", "wrote no brain mask; it said last: Could not read file"),
        ("open(mask, 'w').write('nothing')", "could not be used: .*mask.nii.gz"),
        ("mark(image, mask); data = open(mask, 'rb').read(); open(mask, 'wb').write(data[:-40])", "could not be used"),
        ("import SimpleITK as sitk; sitk.WriteImage(sitk.ReadImage(image) > 500, mask)", "marked 0 ml as brain"),
        (
            "import SimpleITK as sitk; sitk.WriteImage(sitk.ReadImage(image) > 5, mask)",
            r"marked 5832 ml as brain; a brain has 300 to 2500 ml",
        ),
        (FAR_AWAY, "marked 0 ml"),
    ],
)
def test_a_failure_is_one_line_with_the_programs_name_and_last_words(computer, body, message):
    with pytest.raises(SpecialistFailed, match=message) as failed:
        extract(scripted(computer, body), head()[0], "cpu")
    assert str(failed.value).startswith("Scripted 1.0 ")
    assert "\n" not in str(failed.value)
    assert left_behind(computer) == []


@posix
def test_a_program_that_was_killed_may_have_wanted_memory(computer):
    with pytest.raises(SpecialistFailed, match=r"signal 9, perhaps for want of memory\)"):
        extract(scripted(computer, "import signal; os.kill(os.getpid(), signal.SIGKILL)"), head()[0], "cpu")


def test_a_program_that_is_not_there_any_more_is_a_failure(computer):
    gone = Specialist(
        "synthstrip", "SynthStrip", ("T1",), Command((str(computer / "gone"), "-i", "{folder}/image.nii"))
    )
    with pytest.raises(SpecialistFailed, match=r"SynthStrip failed \(exit code 127\); it said last: .*gone"):
        extract(gone, head()[0], "cpu")
    assert left_behind(computer) == []


def test_a_full_disk_is_a_failure(computer, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(computer / "nowhere"))
    with pytest.raises(SpecialistFailed, match=r"Scripted 1\.0 could not be used: .*No such file"):
        extract(scripted(computer, ""), head()[0], "cpu")


def test_part_of_a_brain_is_believed_where_the_volume_cuts_it(computer):
    specialist = scripted(computer, "mark(image, mask)")
    whole, brain = head()
    slab = whole[:, :, 28:32]
    found = extract(specialist, slab, "cpu")
    assert found.sum() * 0.027 < 300  # ml
    assert np.array_equal(found, brain[28:32])
    tip = whole[:, :, :14]  # some 19 ml above a cut of more than 10 cm2
    assert specialists._largest_cut_cm2(brain[:14], (3.0, 3.0, 3.0)) > specialists.CUT_CM2
    assert np.array_equal(extract(specialist, tip, "cpu"), brain[:14])
    with pytest.raises(SpecialistFailed, match="marked 110 ml as brain"):
        small = sitk.GetImageFromArray(np.pad(np.full((15, 16, 17), 100, np.float32), 3))
        small.SetSpacing((3.0, 3.0, 3.0))
        extract(specialist, small, "cpu")


def test_the_area_of_a_cut_is_that_of_its_face():
    mask = np.zeros((4, 5, 6), bool)
    mask[0, 1:4, 2:4] = True  # 6 voxels of 2 x 3 mm on the first face; one row of 2 x 1 mm is not on another
    assert specialists._largest_cut_cm2(mask, (7.0, 2.0, 3.0)) == pytest.approx(0.36)


def test_the_time_limit_ends_it(computer):
    began = time.monotonic()
    with pytest.raises(SpecialistFailed, match=r"found no brain within 3 s; it said last: working"):
        extract(scripted(computer, "print('working', flush=True); time.sleep(60)"), head()[0], "cpu", time_limit=3.0)
    assert time.monotonic() - began < 8
    assert left_behind(computer) == []


def test_a_program_finds_no_network(computer, monkeypatch):
    """A download that a package tries ends in a moment and reaches nobody, not even on this computer."""
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    body = f"from urllib.request import urlopen; urlopen('http://127.0.0.1:{server.server_port}/0.model', timeout=100)"
    began = time.monotonic()
    try:
        with pytest.raises(SpecialistFailed, match=r"failed \(exit code 1\); it said last: .*URLError"):
            extract(scripted(computer, body), head()[0], "cpu")
    finally:
        server.shutdown()
        server.server_close()
    assert asked == []
    assert time.monotonic() - began < 20


# --- Where it runs ---


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("cpu", None, ["on cpu", "-1"]),
        ("cuda", None, ["on cuda", "0"]),
        ("cuda:1", None, ["on cuda", "1"]),
        ("cuda:1", "3,GPU-5a", ["on cuda", "GPU-5a"]),
        ("mps", None, ["on mps", "-1"]),
    ],
)
def test_the_device_is_an_option_and_the_only_gpu_that_is_seen(monkeypatch, device, visible, expected):
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    command = Command(
        ("run", "{folder}/a"), cpu=("on cpu",), cuda=("on cuda",), mps=("on mps",), variables=(("A", "b"),)
    )
    arguments, variables = specialists._for_device(command, Path("here"), device)
    assert arguments == ["run", "here/a", expected[0]]
    assert variables == {"A": "b", "CUDA_VISIBLE_DEVICES": expected[1]}


def environment_of(computer: Path, specialist: Specialist) -> dict[str, str]:
    with pytest.raises(SpecialistFailed, match="wrote no brain mask"):
        extract(specialist, head()[0], "cpu")
    return json.loads((computer / "environment.json").read_text())


def test_a_program_of_its_own_gets_the_users_environment_not_slicers(computer, monkeypatch):
    monkeypatch.setenv("APPLAUNCHER_LEVEL", "1")
    monkeypatch.setenv("SLICER_HOME", "/opt/Slicer")
    for name, value in {"PATH": "/usr/bin", "LD_LIBRARY_PATH": "/usr/lib/mine"}.items():
        monkeypatch.setenv(f"APPLAUNCHER_0_{name}", value)
    body = f"import json; json.dump(dict(os.environ), open({str(computer / 'environment.json')!r}, 'w'))"
    specialist = scripted(computer, body)
    outside = environment_of(computer, specialist)
    assert (outside["PATH"], outside["LD_LIBRARY_PATH"]) == ("/usr/bin", "/usr/lib/mine")
    assert not {"SLICER_HOME", "APPLAUNCHER_LEVEL"} & set(outside)
    assert Path(outside["TMPDIR"]).parent == computer / "tmp"
    here = Specialist("deepbet", "Scripted", ("T1",), Command(specialist.command.arguments, here=True))
    inside = environment_of(computer, here)
    assert (inside["PATH"], inside["SLICER_HOME"]) == (str(computer / "bin"), "/opt/Slicer")


# --- Stopping ---

HANG = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
note = os.path.join({folder!r}, "processes")
open(note + ".part", "w").write(str(os.getpid()) + " " + str(child.pid))
open(os.path.join(os.environ["TMPDIR"], "patient.npy"), "w").write("voxels")
os.rename(note + ".part", note)
time.sleep(60)
"""


@posix
def test_cancelling_ends_the_program_and_what_it_has_started_within_a_second(computer):
    note = computer / "processes"
    asked = []

    def cancel() -> bool:
        if note.exists():
            asked.append(time.monotonic())
        return bool(asked)

    with pytest.raises(Cancelled):
        extract(scripted(computer, HANG.format(folder=str(computer))), head()[0], "cpu", cancel=cancel)
    assert time.monotonic() - asked[0] < 2.0
    assert left_behind(computer) == []
    assert wait_for(lambda: not any(alive(int(number)) for number in note.read_text().split()), 1.0)


def test_cancelled_before_it_begins_nothing_is_started(computer, monkeypatch):
    monkeypatch.setattr(specialists, "GuardedProgram", None)
    with pytest.raises(Cancelled):
        extract(scripted(computer, ""), head()[0], "cpu", cancel=lambda: True)


def test_cancelling_while_the_image_is_written_starts_no_program(computer, monkeypatch):
    install_hd_bet_1(computer)
    write(computer / "packages" / "HD_BET" / "run.py", f"open({str(computer / 'ran')!r}, 'w')")
    monkeypatch.setattr(specialists, "CHUNK_BYTES", 1000)

    def half_written() -> bool:
        files = {path.name for path in (computer / "tmp").glob("*/*")}
        return {"image.nii", "image.nii.gz"} <= files

    with pytest.raises(Cancelled):
        extract(installed()[0], head()[0], "cpu", cancel=half_written)
    assert left_behind(computer) == []
    assert not (computer / "ran").exists()


@posix
def test_what_a_program_leaves_running_is_ended_with_it(computer):
    body = f"""
        import subprocess
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        open({str(computer / "process")!r}, "w").write(str(child.pid))
        mark(image, mask)
    """
    image, brain = head()
    assert np.array_equal(extract(scripted(computer, body), image, "cpu"), brain)
    assert wait_for(lambda: not alive(int((computer / "process").read_text())))


CALLER = """
import os, sys, tempfile
sys.path[:] = {path!r}
tempfile.tempdir = {temporary!r}
import numpy as np
import SimpleITK as sitk
from MSTKDSegmentLib.specialists import Command, Specialist, extract
specialist = Specialist("hd-bet", "Hangs", ("T1",), Command({arguments!r}))
extract(specialist, sitk.GetImageFromArray(np.ones((20, 20, 20), np.float32)), "cpu")
"""


@posix
def test_when_the_caller_is_killed_the_guard_cleans_up(computer):
    """Slicer's worker is gone at once when the user cancels; it gets no chance to say so."""
    arguments = scripted(computer, HANG.format(folder=str(computer))).command.arguments
    code = CALLER.format(path=[str(LIBRARY_PARENT), *sys.path], temporary=str(computer / "tmp"), arguments=arguments)
    caller = subprocess.Popen([sys.executable, "-c", code])
    assert wait_for((computer / "processes").exists)
    assert [path.name.startswith(FOLDER_PREFIX) for path in left_behind(computer)] == [True]
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    assert wait_for(lambda: left_behind(computer) == [], 5)
    assert wait_for(lambda: not any(alive(int(n)) for n in (computer / "processes").read_text().split()), 2)


@posix
def test_a_guard_that_is_killed_is_a_failure(computer):
    body = "import signal; os.kill(os.getppid(), signal.SIGKILL); time.sleep(0.5)"
    with pytest.raises(SpecialistFailed, match="its guard was ended"):
        extract(scripted(computer, body), head()[0], "cpu")
    assert left_behind(computer) == []


def test_the_guard_keeps_away_from_numpy_and_the_rest():
    """It starts while the volume is written, and lives as long as the program: it should cost next to nothing."""
    imported = f"import sys; sys.path.insert(0, {str(LIBRARY_PARENT)!r}); import {guarded_program.__name__}"
    code = f"{imported}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"numpy", "SimpleITK", "torch"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("No such file: '/home/Jane Doe/x'", "No such file: 'x'"),
        ("cannot open /data/patients/jane/t1.nii.gz: gone", "cannot open t1.nii.gz: gone"),
        (r"C:\Users\jane\scan.nii is damaged", "scan.nii is damaged"),
        (r"\\server\share\jane\scan.nii", "scan.nii"),
        ('File "~/jane/a.py", line 3', 'File "a.py", line 3'),
        ("see https://example.org/help/me", "see https://example.org/help/me"),
        ("a 3/4 of b and/or c", "a 3/4 of b and/or c"),
    ],
)
def test_last_words_lose_the_folders(said, shown):
    assert without_folders(said) == shown
