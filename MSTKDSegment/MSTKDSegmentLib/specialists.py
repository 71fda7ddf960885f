"""Brain extraction by a program that the user has installed: HD-BET, SynthStrip or deepbet.

Nothing is downloaded: a program whose weights are not on disk counts as not installed, and one that tries to download
all the same finds no network and fails. `python -m MSTKDSegmentLib.specialists` runs, in a child process, the packages
whose own command line does not do.
"""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import itertools
import os
import re
import shutil
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Callable, NamedTuple, Optional

import numpy as np
import SimpleITK as sitk

from .child_python import module_command
from .errors import Cancelled, InputError, MSTKDError
from .guarded_program import GuardedProgram, without_folders
from .modalities import MODALITIES
from .nifti import read_nifti
from .volume_checks import mask_ml

KEYS = ("hd-bet", "synthstrip", "deepbet")
TIME_LIMIT_SECONDS = 1200.0
# A newborn's brain has 350 ml, an adult's with ventricles up to 2 l; a head with face and neck has 3 l and more.
BRAIN_ML = (300.0, 2500.0)
# A smaller brain is believed where a face of the volume cuts through at least this much of it.
CUT_CM2 = 10.0
CHUNK_BYTES = 1 << 22
SYNTHSTRIP_WEIGHTS = Path("models", "synthstrip.1.pt")  # below FreeSurfer's folder


class SpecialistFailed(MSTKDError):  # noqa: N818 - the caller answers it with the next program
    """An installed program gave no usable brain mask: which one, and what it said last."""


@dataclass(frozen=True)
class Command:
    """`arguments`, then those for the device, with {folder} for the folder of the files `image` and `mask`.

    here: it runs in this process's interpreter; else it is a program of its own, with the user's environment.
    """

    arguments: tuple[str, ...]
    image: str = "image.nii"
    mask: str = "mask.nii.gz"
    cpu: tuple[str, ...] = ()
    cuda: tuple[str, ...] = ()
    mps: tuple[str, ...] = ()
    here: bool = False
    variables: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Specialist:
    """An installed program: its name and version, which of T1, T1Gd, T2 and FLAIR it takes, how it is run."""

    key: str
    title: str
    sequences: tuple[str, ...]
    command: Command


# --- Which are installed ---


def installed() -> list[Specialist]:
    """The usable programs, best first; nothing is imported or started.

    One whose weights are not on disk is left out, because it would download them: HD-BET's in ~/hd-bet_params,
    SynthStrip's in FreeSurfer's folder models (nipreps-synthstrip brings none); deepbet's lie in its package.
    """
    importlib.invalidate_caches()  # it may have been installed since this process began
    found = (_hd_bet(), _synthstrip(), _deepbet())
    return [specialist for specialist in found if specialist is not None]


class Use(NamedTuple):
    """An installed program and the sequence on which it is to mark the brain."""

    program: Specialist
    sequence: str

    def title(self, reference: str) -> str:
        """What it is called; a sequence that is not the reference is named."""
        return self.program.title if self.sequence == reference else f"{self.program.title} on {self.sequence}"


def usable(asked: str, reference: str, with_skull: Collection[str]) -> list[Use]:
    """How the installed programs can be used, best first: all of them for "auto", else the one of this key.

    Those that take the reference come first; after them those that take only others of `with_skull`, the sequences
    that show the skull.
    """
    found = []
    for one in installed():
        taken = [name for name in (reference, *with_skull) if name in one.sequences]
        if asked in ("auto", one.key) and taken:
            found.append(Use(one, taken[0]))
    return sorted(found, key=lambda use: use.sequence != reference)


def _hd_bet() -> Optional[Specialist]:
    """The package of this interpreter, else the script of another one.

    Version 2 runs in nnU-Net. Version 1 is what Slicer's extension HDBrainExtraction copies into its module's folder.
    """
    folder = _package("HD_BET")
    if folder is not None and (folder / "entry_point.py").is_file():
        if _hd_bet_2_weights() and _all_there("nnunetv2"):
            start = module_command("HD_BET.entry_point", sys.executable, sys.path)
            return _hd_bet_2(start, _version("HD_BET", "2"), here=True)
    elif folder is not None and (folder / "run.py").is_file() and _hd_bet_1_weights() and _all_there("skimage"):
        return _hd_bet_1([*_this_module(), "hd-bet-1"], _version("HD_BET", "1"), here=True)
    script = shutil.which("hd-bet")
    version = _version_beside(Path(script)) if script is not None else ""
    if script is not None and not version.startswith("1") and _hd_bet_2_weights():
        return _hd_bet_2([script], version or "2")
    if script is not None and not version.startswith("2") and _hd_bet_1_weights():
        return _hd_bet_1([script], version or "1")
    return None


def _hd_bet_2_weights() -> bool:
    return (_hd_bet_folder() / "release_2.0.0" / "fold_all" / "checkpoint_final.pth").is_file()


def _hd_bet_1_weights() -> int:
    """How many of the five networks are there; 0 without the first one, which is enough for the fast mode."""
    there = [(_hd_bet_folder() / f"{number}.model").is_file() for number in range(5)]
    return sum(there) if there[0] else 0


def _hd_bet_folder() -> Path:
    return Path(os.path.expanduser("~"), "hd-bet_params")  # noqa: PTH111 - Path.home() raises where there is none


def _hd_bet_2(start: Sequence[str], version: str, *, here: bool = False) -> Specialist:
    files = ("-i", "{folder}/image.nii.gz", "-o", "{folder}/brain.nii.gz", "--save_bet_mask", "--no_bet_image")
    command = Command(
        (*start, *files),
        image="image.nii.gz",
        mask="brain_bet.nii.gz",
        cpu=("-device", "cpu", "--disable_tta"),
        cuda=("-device", "cuda"),
        mps=("-device", "mps", "--disable_tta"),
        here=here,
    )
    return Specialist("hd-bet", f"HD-BET {version}", MODALITIES, command)


def _hd_bet_1(start: Sequence[str], version: str, *, here: bool = False) -> Specialist:
    mode = "accurate" if _hd_bet_1_weights() == 5 else "fast"
    slow = ("-device", "cpu", "-mode", "fast", "-tta", "0")  # its authors' advice for a computer without a GPU
    command = Command(
        (*start, "-i", "{folder}/image.nii.gz", "-o", "{folder}/brain.nii.gz"),
        image="image.nii.gz",
        mask="brain_mask.nii.gz",
        cpu=slow,
        cuda=("-device", "0", "-mode", mode, "-tta", "1"),
        mps=slow,
        here=here,
    )
    return Specialist("hd-bet", f"HD-BET {version}", MODALITIES, command)


def _synthstrip() -> Optional[Specialist]:
    """FreeSurfer's program, else nipreps-synthstrip with FreeSurfer's weights; always on the CPU.

    FreeSurfer's torch comes without CUDA, and the option for a GPU takes the first one whatever was asked for. The
    scripts around its containers are left alone: they would fetch the container.
    """
    files = ("-i", "{folder}/image.nii", "-m", "{folder}/mask.nii.gz")
    homes = [Path(folder) for folder in filter(None, [os.environ.get("FREESURFER_HOME")])]
    program = _program("mri_synthstrip", [home / "bin" for home in homes])
    if program is not None:
        # FreeSurfer has it in bin, its container beside models.
        places = [program.absolute().parent, program.resolve().parent]
        home = _with_weights([*homes, *(place.parent for place in places), *places])
        if home is not None:
            command = Command((str(program), *files), variables=(("FREESURFER_HOME", str(home)),))
            return Specialist("synthstrip", f"SynthStrip{_freesurfer_version(home)}", MODALITIES, command)
    home = _with_weights(homes)
    if home is None:
        return None
    model = ("--model", str(home / SYNTHSTRIP_WEIGHTS))
    if _all_there("nibabel", "nitransforms", "scipy", "torch") and _nipreps_synthstrip():
        start = module_command("nipreps.synthstrip.cli", sys.executable, sys.path)
        command = Command((*start, *files, *model), here=True)
    else:
        program = _program("nipreps-synthstrip")
        if program is None:
            return None
        command = Command((str(program), *files, *model))
    return Specialist("synthstrip", "SynthStrip (nipreps)", MODALITIES, command)


def _program(name: str, folders: Iterable[Path] = ()) -> Optional[Path]:
    """A program on PATH, else in one of `folders`."""
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, folders)))
    return Path(found) if found is not None else None


def _with_weights(homes: Iterable[Path]) -> Optional[Path]:
    return next((home for home in homes if (home / SYNTHSTRIP_WEIGHTS).is_file()), None)


def _nipreps_synthstrip() -> bool:
    """Looked for on disk: nipreps is a namespace of several packages, and finding a module in it imports it."""
    return any((folder / "synthstrip" / "cli.py").is_file() for folder in _package_folders("nipreps"))


def _freesurfer_version(home: Path) -> str:
    """Such as " (FreeSurfer 7.4.1)", by its build stamp (freesurfer-linux-ubuntu22_x86_64-7.4.1-20230614-7eb8460)."""
    try:
        stamp = (home / "build-stamp.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"-(\d+(?:\.\d+)+)", stamp)
    return f" (FreeSurfer {found.group(1)})" if found else ""


def _deepbet() -> Optional[Specialist]:
    folder = _package("deepbet")
    if folder is None or not _all_there("cc3d", "fill_voids", "nibabel", "pandas", "torch", "tqdm"):
        return None
    models = folder.parent / "data" / "models"
    if not all((models / name).is_file() for name in ("model.pt", "bbox_model.pt")):
        return None
    arguments = (*_this_module(), "deepbet", "{folder}/image.nii", "{folder}/mask.nii.gz")
    command = Command(arguments, cpu=("cpu",), cuda=("cuda",), mps=("cpu",), here=True)
    return Specialist("deepbet", f"deepbet {_version('deepbet')}".rstrip(), ("T1",), command)


def _package_folders(name: str) -> list[Path]:
    """The folders of a package that could be imported; none where it could not."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return []
    return [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec is not None else []


def _package(name: str) -> Optional[Path]:
    return next(iter(_package_folders(name)), None)


def _all_there(*packages: str) -> bool:
    return all(_package_folders(package) for package in packages)


def _version(distribution: str, begins: str = "") -> str:
    """The installed version where it begins like this, else `begins`: a copied folder has none or another's."""
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return begins
    return version if version.startswith(begins) else begins


def _version_beside(script: Path) -> str:
    """HD-BET's version in the installation that its script belongs to; empty where it cannot be told."""
    prefix = script.resolve().parent.parent
    for folder in (*prefix.glob("lib/python3*/*-packages"), prefix / "Lib" / "site-packages"):
        for information in folder.glob("[hH][dD]_[bB][eE][tT]-*-info"):
            return information.name.split("-")[1].replace(".dist", "").replace(".egg", "")
    return ""


def _this_module() -> list[str]:
    return module_command("MSTKDSegmentLib.specialists", sys.executable, sys.path)


# --- Running one ---


def extract(
    specialist: Specialist,
    image: sitk.Image,
    device: str,
    cancel: Optional[Callable[[], bool]] = None,
    progress: Optional[Callable[[str], None]] = None,
    time_limit: float = TIME_LIMIT_SECONDS,
) -> np.ndarray:
    """Brain mask (D, H, W) bool on the grid of `image`, by an installed program in a child process.

    device: "cpu", "cuda", "cuda:N" or "mps"; `progress` gets a text every second; time_limit: seconds for everything.
    Raises SpecialistFailed when the program fails, takes longer, or marks what cannot be a brain; Cancelled within
    about a second of a true `cancel()`. Leaves no file and no process.
    """
    watch = _Watch(specialist.title, time_limit, cancel, progress)
    watch.look()
    try:
        with GuardedProgram() as guarded:
            watch.guarded = guarded
            _write_image(image, guarded.folder / specialist.command.image, watch.look)
            arguments, variables = _for_device(specialist.command, guarded.folder, device)
            code = guarded.run(arguments, variables, watch.look, here=specialist.command.here)
            if code != 0:
                raise watch.failure(f"failed ({_how_it_ended(code)})")
            path = guarded.folder / specialist.command.mask
            if not path.is_file():
                raise watch.failure("wrote no brain mask")
            mask = _read_mask(path, image)
    except (OSError, RuntimeError, InputError) as error:  # ITK's are RuntimeErrors
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise SpecialistFailed(f"{specialist.title} could not be used: {without_folders(lines[-1])}") from error
    _check_plausible(mask, image, specialist.title)
    return mask


class _Watch:
    """The caller's wishes while a program runs: to stop it, to hear from it, and not to wait for ever."""

    def __init__(
        self,
        title: str,
        time_limit: float,
        cancel: Optional[Callable[[], bool]],
        progress: Optional[Callable[[str], None]],
    ) -> None:
        self.guarded: Optional[GuardedProgram] = None
        self._title, self._limit, self._cancel, self._progress = title, time_limit, cancel, progress
        self._begin = time.monotonic()
        self._told = -1.0

    def look(self) -> None:
        """Tell the progress once a second; raises Cancelled or, after the time limit, SpecialistFailed."""
        if self._cancel is not None and self._cancel():
            raise Cancelled("cancelled; nothing was written")
        seconds = time.monotonic() - self._begin
        if seconds > self._limit:
            raise self.failure(f"found no brain within {self._limit:.0f} s")
        if self._progress is not None and seconds >= self._told + 1.0:
            self._told = seconds
            self._progress(f"{self._title} looks for the brain ({seconds:.0f} s)")

    def failure(self, what: str) -> SpecialistFailed:
        """The error for `what` went wrong, with the program's last words."""
        said = self.guarded.said() if self.guarded is not None else ""
        return SpecialistFailed(f"{self._title} {what}; it said last: {said}" if said else f"{self._title} {what}.")


def _write_image(image: sitk.Image, path: Path, look: Callable[[], None]) -> None:
    """Write `image` as NIfTI, with its axes in the order of the MNI templates.

    HD-BET was trained on that order and does not turn its input. ITK's compression could not be interrupted.
    """
    plain = path.with_name("image.nii")
    sitk.WriteImage(sitk.DICOMOrient(_without_shear(image), "LAS"), str(plain))
    if path == plain:
        return
    with plain.open("rb") as source, gzip.open(path, "wb", compresslevel=1) as target:
        while chunk := source.read(CHUNK_BYTES):
            look()
            target.write(chunk)
    plain.unlink()


def _without_shear(image: sitk.Image) -> sitk.Image:
    """`image`, resampled to 1 mm along the LPS axes where its own are not at right angles: ITK writes only those."""
    axes = np.reshape(image.GetDirection(), (3, 3))
    if np.allclose(axes.T @ axes, np.eye(3), atol=1e-4):
        return image
    ends = itertools.product(*((0, size - 1) for size in image.GetSize()))
    corners = np.array([image.TransformIndexToPhysicalPoint(index) for index in ends])
    low, high = corners.min(axis=0), corners.max(axis=0)
    size = [int(side) for side in np.ceil(high - low) + 1]
    lowest = float(sitk.GetArrayViewFromImage(image).min())
    unit, along = (1.0, 1.0, 1.0), np.eye(3).ravel().tolist()
    return sitk.Resample(image, size, sitk.Transform(), sitk.sitkLinear, low.tolist(), unit, along, lowest)


def _for_device(command: Command, folder: Path, device: str) -> tuple[list[str], dict[str, str]]:
    """The arguments and variables of `command` for files in `folder` and a device."""
    kind, _, number = device.partition(":")
    options = {"cuda": command.cuda, "mps": command.mps}.get(kind, command.cpu)
    arguments = [part.replace("{folder}", str(folder)) for part in (*command.arguments, *options)]
    # Programs take the first GPU that they see, so they see one.
    visible = _gpu_name(int(number or 0)) if kind == "cuda" else "-1"
    return arguments, {**dict(command.variables), "CUDA_VISIBLE_DEVICES": visible}


def _gpu_name(number: int) -> str:
    """What CUDA_VISIBLE_DEVICES calls the GPU that torch numbers so in this process."""
    listed = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return listed[number] if number < len(listed) else str(number)


def _how_it_ended(code: Optional[int]) -> str:
    if code is None:
        return "its guard was ended"
    if code < 0:
        return f"signal {-code}" + (", perhaps for want of memory" if code == -9 else "")
    return f"exit code {code}"


def _read_mask(path: Path, image: sitk.Image) -> np.ndarray:
    """The mask in `path` at the voxels of `image` (D, H, W), each looked up by its place in the patient."""
    written = read_nifti(path) > 0.5
    return sitk.GetArrayFromImage(sitk.Resample(written, image, sitk.Transform(), sitk.sitkNearestNeighbor, 0)) > 0


def _check_plausible(mask: np.ndarray, image: sitk.Image, title: str) -> None:
    """Raises SpecialistFailed for a mask that is no brain by its volume; a part of one may be smaller."""
    low, high = BRAIN_ML
    ml = mask_ml(mask, image)
    if ml == 0 or ml > high or (ml < low and _largest_cut_cm2(mask, image.GetSpacing()[::-1]) < CUT_CM2):
        raise SpecialistFailed(f"{title} marked {ml:.0f} ml as brain; a brain has {low:.0f} to {high:.0f} ml.")


def _largest_cut_cm2(mask: np.ndarray, spacing: Sequence[float]) -> float:
    """The largest area of `mask` (D, H, W) on a face of the volume; `spacing` in mm, in the same order."""
    areas = []
    for axis in range(3):
        pixel = float(np.prod(spacing)) / spacing[axis] / 100.0
        areas += [np.count_nonzero(np.take(mask, end, axis)) * pixel for end in (0, -1)]
    return max(areas)


# --- In the child process ---


def _run_hd_bet_1(arguments: Sequence[str]) -> None:
    """HD-BET 1 by its function, with the options of its script, which is no module before 1.1."""
    options = dict(zip(arguments[::2], arguments[1::2]))
    device = options["-device"]
    importlib.import_module("HD_BET.run").run_hd_bet(
        options["-i"],
        options["-o"],
        mode=options["-mode"],
        device=device if device == "cpu" else int(device),
        postprocess=True,
        do_tta=options["-tta"] == "1",
    )


def _run_deepbet(image: str, mask: str, device: str) -> None:
    """deepbet by its function: its script fails where a mask alone is wanted."""
    run_bet = importlib.import_module("deepbet").run_bet
    run_bet([image], mask_paths=[mask], no_gpu=device == "cpu", skip_broken=False)


def main(task: str, arguments: Sequence[str]) -> None:
    """`hd-bet-1 OPTIONS` or `deepbet IMAGE MASK DEVICE`."""
    if task == "deepbet":
        _run_deepbet(*arguments)
    else:
        _run_hd_bet_1(arguments)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
