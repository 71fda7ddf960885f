"""Which volume of a patient is which sequence: a proposal for each one of a set or a folder, no role given twice."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Callable, Optional, Union

from .errors import InputError, RoleError
from .file_checks import VOLUME_ENDINGS, os_errors_as_input_errors
from .modalities import MODALITIES
from .roles import (
    UNNAMED_CONTRAST,
    RoleProposal,
    propose_from_dicom,
    propose_from_name,
    split_ending,
)
from .translation import _

TagReader = Callable[[Path], Mapping[str, str]]
"""Takes a folder of DICOM slices, gives the tags of one of them by keyword (`SeriesDescription` ...)."""
Settler = Callable[[Sequence[RoleProposal], Collection[str]], Sequence[RoleProposal]]
"""Takes the proposals for a patient's volumes and the sequences that are settled, gives proposals that say more."""


# --- a set of volumes -----------------------------------------------------------------------------------------------


def propose_roles(
    sources: Sequence[Path], tags: Optional[Mapping[str, Mapping[str, str]]] = None
) -> list[RoleProposal]:
    """Proposals for the volumes of one patient, in the order of `sources`; no role is proposed twice.

    `tags` holds DICOM tags by `str(source)`. Folders that all sources share say nothing about any one of them.
    """
    return _proposed(sources, tags or {}, _shared_folder(sources))


def _proposed(sources: Sequence[Path], tags: Mapping[str, Mapping[str, str]], root: str) -> list[RoleProposal]:
    proposals = []
    for source in sources:
        name = os.path.relpath(source, root) if root else str(source)
        known = tags.get(str(source))
        single = propose_from_name(name) if known is None else propose_from_dicom(known, fallback_name=name)
        proposals.append(replace(single, source=str(source)))
    for modality in MODALITIES:
        _settle(proposals, modality)
    return _with_contrast_settled(proposals)


def _shared_folder(sources: Sequence[Path]) -> str:
    parents = [os.path.dirname(source) for source in sources]  # noqa: PTH120 - relative paths must stay relative
    if len(parents) < 2 or len({os.path.isabs(parent) for parent in parents}) > 1:  # noqa: PTH117
        return ""
    try:
        return os.path.commonpath(parents)
    except ValueError:  # different drives share nothing
        return ""


def _settle(proposals: list[RoleProposal], modality: str) -> None:
    """Of several volumes proposed for `modality` keep the clearly better one; without one, all become ambiguous."""
    rivals = [index for index, proposal in enumerate(proposals) if proposal.modality == modality]
    if len(rivals) < 2:
        return
    best = max(_rank(proposals[index]) for index in rivals)
    winners = [index for index in rivals if _rank(proposals[index]) == best]
    with_contrast = any(proposal.modality == "T1Gd" for proposal in proposals)
    settled = {}
    for index in rivals:
        others = [proposals[other].source for other in rivals if other != index]
        if len(winners) > 1:
            settled[index] = _tied(proposals[index], others)
        elif index not in winners:
            settled[index] = _beaten(proposals[index], proposals[winners[0]], with_contrast)
    for index, proposal in settled.items():
        proposals[index] = replace(proposal, modality=None)


def _tied(proposal: RoleProposal, others: Sequence[str]) -> RoleProposal:
    names = " and ".join(sorted(_short(other, proposal.source) for other in others))
    reason = _("{reason}, but {names} would be {modality} too, and each role has one volume").format(
        reason=proposal.reason, names=names, modality=proposal.modality
    )
    return replace(proposal, certainty="ambiguous", reason=reason, candidates=(str(proposal.modality),))


def _beaten(loser: RoleProposal, winner: RoleProposal, with_contrast: bool) -> RoleProposal:
    name = _short(winner.source, loser.source)
    _distance, word, meaning = _variant(loser.source)
    if loser.certainty == winner.certainty:
        reason = _('"{word}" in the file name marks {meaning}; {name} is used as {modality} instead').format(
            word=word, meaning=meaning, name=name, modality=winner.modality
        )
    elif loser.candidates == UNNAMED_CONTRAST and not with_contrast:
        # Beside a T1 before contrast this may well be the T1 after it: dropping it unasked could cost the best input.
        reason = _("{fact}, but {name} is the T1 before contrast, so this may be the one after").format(
            fact=loser.reason.split(";")[0], name=name
        )
        return replace(loser, certainty="ambiguous", reason=reason)
    else:
        reason = _("{reason}, but {name} is more clearly {modality} and is used instead").format(
            reason=loser.reason, name=name, modality=winner.modality
        )
    return replace(loser, certainty="not_an_input", reason=reason, candidates=(str(winner.modality),))


_VARIANTS = (
    (re.compile(r"(?i)(?<![a-z0-9])(?:bias|n4)(?![a-z0-9])"), 1, "the bias-corrected copy of a scan"),
    (
        re.compile(r"(?i)(?<![a-z0-9])(?:unstripped|raw|orig|original)(?![a-z0-9])"),
        2,
        "a version before brain extraction",
    ),
)


def _variant(source: str) -> tuple[int, str, str]:
    """How far a file is from the plain, skull-stripped version of the scan, the word that says so, and its meaning."""
    for pattern, distance, meaning in _VARIANTS:
        match = pattern.search(split_ending(Path(source).name)[0])
        if match:
            return distance, match.group(), meaning
    return 0, "", ""


def _rank(proposal: RoleProposal) -> tuple[bool, int]:
    return proposal.certainty == "certain", -_variant(proposal.source)[0]


def _short(source: str, beside: str) -> str:
    """The file name, or the whole path where both have the same file name."""
    return source if Path(source).name == Path(beside).name else Path(source).name


def _with_contrast_settled(proposals: Sequence[RoleProposal]) -> list[RoleProposal]:
    """A T1 that does not name contrast is the one without it where another volume is the T1 with it."""
    after = [proposal for proposal in proposals if proposal.modality == "T1Gd"]
    settled = []
    for proposal in proposals:
        if after and proposal.modality == "T1" and proposal.candidates == UNNAMED_CONTRAST:
            fact = proposal.reason.split(";")[0]
            reason = _("{fact}, and {source} is the T1 after contrast").format(
                fact=fact, source=_short(after[0].source, proposal.source)
            )
            settled.append(replace(proposal, certainty="certain", reason=reason, candidates=("T1",)))
        else:
            settled.append(proposal)
    return settled


# --- a case folder --------------------------------------------------------------------------------------------------


def roles_in_folder(
    folder: Union[str, Path],
    read_tags: Optional[TagReader] = None,
    settled: Collection[str] = (),
    by_look: Optional[Settler] = None,
    accept_looks: bool = False,
) -> tuple[dict[str, Path], list[RoleProposal]]:
    """The sequences found in one patient's folder: a path by modality, and the proposal for every volume seen.

    Looked at are the volume files directly in the folder or, where none of them can be an input, its sub-folders, each
    holding volume files or the DICOM slices of one series (then the path is that sub-folder, and `read_tags` is asked
    for its tags). `settled` names sequences that the user gave or left out: volumes that could only be those raise no
    question. `by_look` is asked what the volumes look like where names do not tell: with `accept_looks` its proposals
    are taken, else the error tells them. Raises InputError when there is no such folder or one that cannot be read, and
    RoleError when no sequence is found or when one is ambiguous.
    """
    folder = Path(folder)
    with os_errors_as_input_errors(folder):
        if not folder.is_dir():
            raise InputError(
                _("{folder}: no such folder; give the folder that holds one patient's volumes").format(folder=folder)
            )
        sources = _sources_in(folder)
        tags = {str(source): read_tags(source) for source in sources if source.is_dir()} if read_tags else None
    # The case folder's own name is the patient's; it says nothing about a sequence.
    proposals = _proposed(sources, tags or {}, _shared_folder(sources) or str(folder))
    if by_look is not None and accept_looks:
        proposals = list(by_look(proposals, settled))
    roles = {proposal.modality: Path(proposal.source) for proposal in proposals if proposal.modality}
    ambiguous = [
        proposal
        for proposal in proposals
        if proposal.certainty == "ambiguous" and not (proposal.candidates and set(proposal.candidates) <= set(settled))
    ]
    if ambiguous or not (roles or settled):
        problem = "it is not clear which volume is which sequence" if ambiguous else "no volume could be given a role"
        hint = "" if by_look is None or accept_looks else _hint(proposals, by_look(proposals, settled))
        raise RoleError(f"{folder}: {problem}: {_listed(ambiguous or proposals)}; {hint}{_WHAT_TO_DO}")
    return {modality: roles[modality] for modality in MODALITIES if modality in roles}, proposals


_WHAT_TO_DO = "name the files with --t1, --t1gd, --t2 and --flair (those that the patient has)"


def _hint(before: Sequence[RoleProposal], after: Sequence[RoleProposal]) -> str:
    """What looks alone propose, and how to accept it; "" where they say nothing."""
    found = [new for old, new in zip(before, after) if new != old]
    if not found:
        return ""
    told = ", ".join(f"{Path(proposal.source).name} as {proposal.modality} {proposal.reason}" for proposal in found)
    return f"proposed is {told}; accept this with --by-look, or "


def _listed(proposals: Sequence[RoleProposal], most: int = 8) -> str:
    lines = [f"{Path(proposal.source).name}: {proposal.reason}" for proposal in proposals[:most]]
    more = [_("and {count} more").format(count=len(proposals) - most)] if len(proposals) > most else []
    return "; ".join(lines + more)


def _sources_in(folder: Path) -> list[Path]:
    """The volumes of a case folder; where it only wraps another folder (a study, an unpacked archive), those inside."""
    files = _volume_files(folder)
    if any(proposal.certainty != "not_an_input" for proposal in map(propose_from_name, (f.name for f in files))):
        return files
    below = sorted(path for path in _visible(folder) if path.is_dir())
    found = [source for path in below for source in (_volume_files(path) or ([path] if _holds_dicom(path) else []))]
    if found:
        return files + found
    if len(below) == 1:
        return _sources_in(below[0])
    if _holds_dicom(folder):
        raise RoleError(
            _("{folder}: holds DICOM slices directly; put each series into a folder of its own").format(folder=folder)
        )
    if not files:
        raise RoleError(
            _(
                "{folder}: holds no volume ({VOLUME_ENDINGS}) and no folder of volumes or DICOM slices; {WHAT_TO_DO}"
            ).format(folder=folder, VOLUME_ENDINGS=", ".join(VOLUME_ENDINGS), WHAT_TO_DO=_WHAT_TO_DO)
        )
    return files


def _volume_files(folder: Path) -> list[Path]:
    return sorted(path for path in _visible(folder) if path.is_file() and path.name.lower().endswith(VOLUME_ENDINGS))


def _visible(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if not path.name.startswith("."))


def _holds_dicom(folder: Path) -> bool:
    """Whether the first files of a folder are DICOM: by ending, or by the mark at byte 128 (PS3.10, section 7.1)."""
    files = sorted(path for path in _visible(folder) if path.is_file())[:3]
    return any(path.suffix.lower() in (".dcm", ".ima") or _dicom_mark(path) for path in files)


def _dicom_mark(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"
