"""Which sequence a volume is: a proposal from its file name, folder names or DICOM tags, with the reason for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Optional, Union

from .file_checks import VOLUME_ENDINGS
from .modalities import MODALITIES
from .sequence_words import NameWords, read_words
from .translation import _

# Marks a T1 whose contrast nobody names: a T1Gd beside it settles the question.
UNNAMED_CONTRAST = ("T1", "T1Gd")


@dataclass(frozen=True)
class RoleProposal:
    """What one volume is proposed as.

    `modality` is one of `MODALITIES`, or None where `certainty` is "ambiguous", "unknown" or "not_an_input".
    `reason` is one sentence for the person who decides; `candidates` are the sequences that it could be.
    """

    source: str
    modality: Optional[str]
    certainty: str  # "certain" | "likely" | "ambiguous" | "unknown" | "not_an_input"
    reason: str
    candidates: tuple[str, ...] = ()


class _Text(NamedTuple):
    """A text about a volume, and where it stands ("file name", "series description" ...)."""

    text: str
    where: str
    indirect: bool = False  # the name of a folder above the volume


@dataclass(frozen=True)
class _Evidence:
    """The text that names the sequence."""

    words: NameWords
    where: str
    indirect: bool = False
    agent: str = ""  # contrast agent of the DICOM header; "none" where the header denies one


# --- one volume -----------------------------------------------------------------------------------------------------


def propose_from_name(name_or_path: Union[str, Path]) -> RoleProposal:
    """The role of a volume from its file name or, where that says nothing, from the two folders above it."""
    source = str(name_or_path)
    texts = _texts_of_path(source)
    evidence = _first_that_speaks(texts)
    numbered = _numbered_channel(source, texts[0].text)
    # Folders above a numbered volume are a project's; only "labelsTr" says something about the volume itself.
    if numbered and (evidence is None or (evidence.indirect and not evidence.words.not_input)):
        return numbered
    return _decided(source, evidence, texts)


def propose_from_dicom(tags: Mapping[str, str], fallback_name: str = "") -> RoleProposal:
    """The role of a DICOM series from its tags by keyword; `fallback_name` is read where the descriptions say nothing.

    Read are SeriesDescription, ProtocolName, ContrastBolusAgent and, where present, Modality, ImageType, EchoTime,
    RepetitionTime and InversionTime (milliseconds, as in the DICOM standard, PS3.3 C.8.3.1).
    """
    description = tags.get("SeriesDescription", "")
    source = fallback_name or description
    foreign = _foreign_image(tags)
    if foreign:
        return RoleProposal(source, None, "not_an_input", foreign)
    texts = [_Text(description, "series description"), _Text(tags.get("ProtocolName", ""), "protocol name")]
    evidence = _first_that_speaks(texts + (_texts_of_path(fallback_name) if fallback_name else []))
    times = _weighting_by_times(tags)
    if evidence is None:
        return _from_times(source, times)
    evidence = replace(evidence, agent=_contrast_agent(tags))
    return _checked_against_times(_decided(source, evidence, texts), times)


def _texts_of_path(source: str) -> list[_Text]:
    """The name of a volume and those of the two folders above it."""
    path = source.replace("\\", "/")
    for slashed, written_out in _SLASHED:
        path = slashed.sub(written_out, path)
    parts = [part for part in path.split("/") if part not in ("", ".", "..")] or [""]
    stem, ending = split_ending(parts[-1])
    above = [_Text(part, "folder name", indirect=True) for part in reversed(parts[-3:-1])]
    return [_Text(stem, "file name" if ending else "name"), *above]


# The slash of "T1 W/O GD" or "PD/T2" is no folder border.
_SLASHED = (
    (re.compile(r"(?i)(?<![a-z0-9])w\s?/\s?wo(?![a-z0-9])"), "with without"),
    (re.compile(r"(?i)(?<![a-z0-9])w\s?/\s?o(?![a-z0-9])"), "without"),
    (re.compile(r"(?i)(?<![a-z0-9])w\s?/\s?(?=(?:c|gd|gad\w*|contrast)(?![a-z0-9]))"), "with "),
    (re.compile(r"(?i)(?<![a-z0-9])pd\s?/\s?t2(?![a-z0-9])"), "pd t2"),
)


def written_out(name: str) -> str:
    """A name that is no path, its slashes written out: "T1 W/O GD" -> "T1 without GD", "T1/post" -> "T1 post"."""
    for slashed, words in _SLASHED:
        name = slashed.sub(words, name)
    return name.replace("/", " ").replace("\\", " ")


def split_ending(name: str) -> tuple[str, str]:
    """`"a_t1.nii.gz"` -> `("a_t1", ".nii.gz")`; the ending is "" where it is that of no volume or DICOM file."""
    for ending in (*VOLUME_ENDINGS, ".dcm", ".ima"):
        if name.lower().endswith(ending):
            return name[: -len(ending)], ending
    return name, ""


def _first_that_speaks(texts: Sequence[_Text]) -> Optional[_Evidence]:
    """The first text that names a sequence; "POST" in a folder "T1" is read together with that folder."""
    first = read_words(texts[0].text)
    contrast_only = bool(first.post or first.post_only or first.pre)
    for position, (text, where, indirect) in enumerate(texts):
        words = read_words(text)
        if words.names_a_sequence:
            if position and contrast_only:
                words = read_words(f"{text} {texts[0].text}")
            return _Evidence(words, where, indirect)
    return None


def _numbered_channel(source: str, stem: str) -> Optional[RoleProposal]:
    """Names of the Medical Segmentation Decathlon and of nnU-Net, which number the channels of a case."""
    if re.fullmatch(r"(?i)brats_\d{3}", stem):
        reason = _(
            '"{stem}" is a case of the Medical Segmentation Decathlon, whose four sequences lie in '
            "one 4-D file: split it into one file a sequence"
        ).format(stem=stem)
        return RoleProposal(source, None, "unknown", reason, MODALITIES)
    match = re.fullmatch(r"(.+)_(\d{4})", stem)
    if match is None or int(match.group(2)) >= len(MODALITIES):
        return None
    channel = int(match.group(2))
    if not re.fullmatch(r"(?i)brats_\d{3}", match.group(1)):
        reason = _(
            '"_{channel:04d}" may be a channel number of nnU-Net, whose meaning differs from data set to data set'
        ).format(channel=channel)
        return RoleProposal(source, None, "unknown", reason, MODALITIES)
    modality = ("FLAIR", "T1", "T1Gd", "T2")[channel]
    reason = _(
        '"_{channel:04d}" is {modality} in the channel order of the Medical Segmentation '
        "Decathlon (FLAIR, T1, T1Gd, T2); the name itself does not say so"
    ).format(channel=channel, modality=modality)
    return RoleProposal(source, modality, "likely", reason, (modality,))


def _decided(source: str, evidence: Optional[_Evidence], texts: Sequence[_Text]) -> RoleProposal:
    if evidence is None:
        where = " or ".join(dict.fromkeys(text.where for text in texts if text.text)) or "name"
        return RoleProposal(source, None, "unknown", _("no word in the {where} names a sequence").format(where=where))
    words, where = evidence.words, evidence.where
    if words.not_input:
        reason = _('"{not_input}" in the {where} means {not_input_kind}').format(
            not_input=words.not_input, where=where, not_input_kind=words.not_input_kind
        )
        return RoleProposal(source, None, "not_an_input", reason)
    if words.dual_echo and not words.flair and not words.t1:
        reason = _('"{dual_echo}" in the {where} means proton density and T2 in one series').format(
            dual_echo=words.dual_echo, where=where
        )
        return RoleProposal(source, None, "ambiguous", reason, ("T2",))
    if words.t1 and (words.t2 or words.flair) and not words.t1_flair:
        other = words.flair or words.t2
        candidates = ("T1", "FLAIR" if words.flair else "T2")
        reason = _('the {where} names both "{t1}" and "{other}"').format(where=where, t1=words.t1, other=other)
        return RoleProposal(source, None, "ambiguous", reason, candidates)
    proposal = _t1(source, evidence) if words.t1 else _t2_or_flair(source, evidence)
    if evidence.indirect and proposal.certainty == "certain":
        return replace(proposal, certainty="likely")
    return proposal


def _t1(source: str, evidence: _Evidence) -> RoleProposal:
    words, where = evidence.words, evidence.where
    after, before = words.post or words.post_only, words.pre
    agent, denied = evidence.agent, evidence.agent == "none"
    if after and before:
        reason = _('the {where} says both before ("{before}") and after ("{after}") contrast').format(
            where=where, before=before, after=after
        )
    elif before and agent and not denied:
        reason = _(
            'the {where} says before contrast ("{before}"), but the header names a contrast agent ({agent})'
        ).format(where=where, before=before, agent=agent)
    elif after and denied:
        reason = _(
            'the {where} says after contrast ("{after}"), but the header says that no contrast agent was given'
        ).format(where=where, after=after)
    else:
        return _t1_without_contradiction(source, evidence)
    return RoleProposal(source, None, "ambiguous", reason, ("T1", "T1Gd"))


def _t1_without_contradiction(source: str, evidence: _Evidence) -> RoleProposal:
    words, where = evidence.words, evidence.where
    after, before = words.post or words.post_only, words.pre
    agent = "" if evidence.agent == "none" else evidence.agent
    name = words.t1_flair or words.t1
    if agent:
        reason = _('"{name}" in the {where} means T1, and the header names a contrast agent ({agent})').format(
            name=name, where=where, agent=agent
        )
        certainty = "certain"
    elif after:
        reason = _meaning(words.t1, after, where, "T1 after gadolinium")
        certainty = "certain" if words.post else "likely"
        if not words.post:
            reason += ' (if "post" does not mean after surgery)'
    elif before:
        reason, certainty = _meaning(words.t1, before, where, "T1 before contrast"), "certain"
    elif evidence.agent == "none":
        reason = _('"{name}" in the {where} means T1, and the header says that no contrast agent was given').format(
            name=name, where=where
        )
        certainty = "certain"
    else:
        reason = _(
            '"{name}" in the {where} means T1; contrast is not named, so it is taken as T1 without contrast'
        ).format(name=name, where=where)
        certainty = "likely"
    modality = "T1Gd" if agent or after else "T1"
    candidates = UNNAMED_CONTRAST if certainty == "likely" and modality == "T1" else (modality,)
    if words.t1_flair:
        reason += ' ("T1 FLAIR" is a T1-weighted inversion recovery)'
        return RoleProposal(source, modality, "likely", reason, (modality, "FLAIR"))
    return RoleProposal(source, modality, certainty, reason, candidates)


def _meaning(sequence: str, contrast: str, where: str, meaning: str) -> str:
    if sequence == contrast:
        return _('"{sequence}" in the {where} means {meaning}').format(sequence=sequence, where=where, meaning=meaning)
    return _('"{sequence}" and "{contrast}" in the {where} mean {meaning}').format(
        sequence=sequence, contrast=contrast, where=where, meaning=meaning
    )


def _t2_or_flair(source: str, evidence: _Evidence) -> RoleProposal:
    words, where = evidence.words, evidence.where
    modality, word = ("FLAIR", words.flair) if words.flair else ("T2", words.t2)
    reason = _('"{word}" in the {where} means {modality}').format(word=word, where=where, modality=modality)
    agent = "" if evidence.agent == "none" else evidence.agent
    contrast = (
        _('"{post_only}" in the {where}').format(post_only=words.post or words.post_only, where=where)
        if words.post or words.post_only
        else ""
    )
    if agent:
        contrast = _("the contrast agent in the header ({agent})").format(agent=agent)
    if contrast:
        return RoleProposal(
            source,
            modality,
            "likely",
            _("{reason}, taken after contrast according to {contrast}").format(reason=reason, contrast=contrast),
            (modality,),
        )
    if word == "t2 tirm":
        return RoleProposal(
            source, modality, "likely", _("{reason} where the fluid is dark").format(reason=reason), ("FLAIR", "T2")
        )
    return RoleProposal(source, modality, "certain", reason, (modality,))


# --- what only DICOM says -------------------------------------------------------------------------------------------


def _contrast_agent(tags: Mapping[str, str]) -> str:
    """The contrast agent; "none" where the header denies one, "" where it says nothing."""
    text = str(tags.get("ContrastBolusAgent", "")).strip()
    if text.lower() in ("", "unknown", "n/a", "na", "null", "-"):
        return ""
    if re.match(r"(?i)(?:no|none|nil|without|w/o|ohne|kein\w*|sans|n)\b|0+(?:[.,]0+)?\s*(?:ml|cc)?$", text):
        return "none"
    return text


def _foreign_image(tags: Mapping[str, str]) -> str:
    modality = str(tags.get("Modality", "MR")).strip().upper()
    if modality not in ("", "MR"):
        return _("the header says {modality}, which is not an MRI scan").format(modality=modality)
    # Philips writes M_FFE on every gradient-echo scan, T1 ones above all.
    kind = read_words(re.sub(r"(?i)(?<![a-z])(?:ffe|gre)(?![a-z])", " ", str(tags.get("ImageType", ""))))
    return (
        _('"{not_input}" in the image type means {not_input_kind}').format(
            not_input=kind.not_input, not_input_kind=kind.not_input_kind
        )
        if kind.not_input
        else ""
    )


def _milliseconds(tags: Mapping[str, str], keyword: str) -> float:
    try:
        return float(str(tags.get(keyword, "")).strip() or "nan")
    except ValueError:
        return float("nan")


def _weighting_by_times(tags: Mapping[str, str]) -> tuple[str, str]:
    """The sequence that the times of the scan fit, and these times in words; ("", "") where they settle nothing.

    The limits are those of routine brain protocols at 1.5 and 3 T, with gaps between them left undecided. Comparisons
    with a time that is absent (NaN) are false.
    """
    echo, repetition, inversion = (_milliseconds(tags, f"{name}Time") for name in ("Echo", "Repetition", "Inversion"))
    said = _("echo time {echo:g} ms and repetition time {repetition:g} ms").format(echo=echo, repetition=repetition)
    if echo >= 60 and inversion >= 1400:
        return "FLAIR", _("echo time {echo:g} ms and inversion time {inversion:g} ms").format(
            echo=echo, inversion=inversion
        )
    if echo >= 60 and repetition >= 2000 and not inversion > 0:
        return "T2", said
    if echo <= 15 and (repetition <= 1200 or 300 <= inversion <= 1300):
        return "T1", said
    return "", ""


def _from_times(source: str, times: tuple[str, str]) -> RoleProposal:
    weighting, said = times
    if not weighting:
        return RoleProposal(source, None, "unknown", "neither the descriptions nor the name say which sequence it is")
    # T1 and T2 times are shared with angiography and diffusion, so they alone never decide.
    if weighting != "FLAIR":
        reason = _("no description names a sequence; {said} would fit {weighting}, but other scans as well").format(
            said=said, weighting=weighting
        )
        return RoleProposal(source, None, "unknown", reason, (weighting,))
    return RoleProposal(
        source,
        "FLAIR",
        "likely",
        _("no description names a sequence, but {said} fit FLAIR").format(said=said),
        ("FLAIR",),
    )


def _checked_against_times(proposal: RoleProposal, times: tuple[str, str]) -> RoleProposal:
    """Turn a name that the scan's own times contradict into a question."""
    weighting, said = times
    named = {"T1Gd": "T1"}.get(proposal.modality or "", proposal.modality)
    # FLAIR with T2 times is no contradiction: some scanners leave the inversion time out.
    if not weighting or named is None or named == weighting or (named, weighting) == ("FLAIR", "T2"):
        return proposal
    reason = _("{reason}, but {said} fit {weighting}").format(reason=proposal.reason, said=said, weighting=weighting)
    return replace(
        proposal, modality=None, certainty="ambiguous", reason=reason, candidates=(str(proposal.modality), weighting)
    )
