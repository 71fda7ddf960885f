"""The words inside a file name, folder name or series description by which clinics and data sets call a sequence."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from .modalities import ALIASES


@dataclass(frozen=True)
class NameWords:
    """What one file name, folder name or series description says; each field holds the words that say it, or ""."""

    t1: str = ""
    t2: str = ""
    flair: str = ""
    dual_echo: str = ""  # proton density and T2 in one series
    t1_flair: str = ""  # a T1-weighted inversion recovery, which vendors call "T1 FLAIR"
    post: str = ""  # after contrast, an agent being named
    post_only: str = ""  # the bare word "post", which can also mean after surgery
    pre: str = ""  # before or without contrast
    not_input: str = ""  # something that is none of the four sequences
    not_input_kind: str = ""

    @property
    def names_a_sequence(self) -> bool:
        return bool(self.t1 or self.t2 or self.flair or self.not_input)


_SEQUENCES = "t1|t1w|t1wi|t2|t2w|t2wi|flair|mprage|spgr|fspgr|bravo|mask|seg"
_PLANES = "ax|axial|cor|coronal|sag|sagittal|tra|trans|transversal|2d|3d"
_TECHNIQUES = "se|fse|tse|ir|gre|tfe|ffe|tirm|mpr|space|spc|cube|fs|weighted"
_AGENTS = (
    "gd|gad|gado|gadolinium|gadovist|gadavist|gadobutrol|dotarem|clariscan|magnevist|multihance|prohance|omniscan|"
    "contrast|contraste|kontrast|kontrastmittel|km|ce|enhanced|enh|inj|injecte|injectee|injection|civ"
)
_SURGERY = "op|operative|surgical|surgery|biopsy|resection|rt|radiation|radiotherapy|chemo|treatment|proc|processed"
# Longest first, so that a glued word is cut at the longest word that leaves a readable rest.
_GLUED = sorted(
    "|".join((_SEQUENCES, _PLANES, _TECHNIQUES, _AGENTS, "post|pre|non|nativ|native|preop|postop")).split("|"),
    key=lambda word: (-len(word), word),
)

# Every pattern below is matched against words that are separated, and surrounded, by single blanks.
_PATTERNS = {
    "t1": r"t1|t1w|t1wi|t1n|t1c|t1ce|t1wce|t1wc|t1gd|t1gad|t1gado|ct1",
    "t1_technique": r"mprage|mp rage|mp2rage|bravo|f?spgr|tfl3d|vibe|3d tfe|tfe 3d",
    "t2": r"t2|t2w|t2wi",
    "flair": r"flair|t2f|da fl|(?:t2 tirm (?:\w+ )*)?dark ?fluid|t2 tirm|fluid attenuated inversion recovery",
    "dual_echo": r"pdw? (?:and )?t2w?|t2w? (?:and )?pdw?",
    "t1_flair": rf"t1w? (?:(?:{_PLANES}|{_TECHNIQUES}|{_AGENTS}|pre|post|\+c|\d+) )*(?:flair|dark ?fluid)",
    "pre": rf"(?:pre|before|vor|ohne|sans|avant|without|wo|no|non|not|utan|senza|sin) (?:{_AGENTS}|c)"
    rf"|(?:sem|zonder|uten|uden|bez) (?:{_AGENTS}|c)|[os] (?:{_AGENTS})|ce none"
    rf"|pre(?! (?:{_SURGERY}|{_AGENTS}) )|unenhanced|noncon|nativ|native(?! space )|t1n|(?<=t1 )nc"
    r"|(?:ohne|without|wo|utan)(?! (?:fs|fat) )|(?:before|vor|sans|avant)(?= (?:and|und|et) )",
    "post": rf"(?:(?:post|with|w|mit|nach|apres|avec|after|plus) )?(?:{_AGENTS}|\+c)|(?:post|with|w|mit|apres|avec) c"
    r"|t1c|t1ce|t1wce|t1wc|t1gd|t1gad|t1gado|ct1",
    "post_only": rf"post(?! (?:{_SURGERY}) )",
    "both": r"(?:w|with) (?:and )?(?:wo|without)|(?:wo|without) (?:and )?with",
}
_PATTERN = {name: re.compile(rf"(?<= )(?:{pattern})(?= )") for name, pattern in _PATTERNS.items()}

_KindTable = tuple[tuple[str, re.Pattern[str]], ...]


def _kinds(*rows: tuple[str, str]) -> _KindTable:
    return tuple((kind, re.compile(rf"(?<= )(?:{pattern})(?= )")) for kind, pattern in rows)


_NOT_INPUTS = _kinds(
    (
        "a segmentation or mask, not a scan",
        r"seg|segs|segm|segmentations?|\w*mask|masks|labels?|labelmap|labels?t[rs]|rois?|gtv|ctv|annotations?"
        r"|glistrboost|ground ?truth|predictions?|parcellation|aseg|aparc|rtstruct",
    ),
    (
        "diffusion imaging, not one of the four sequences",
        r"dwi|dwibs|dti|diff|diffusion|[de]?adc|tracew?|ep2d|t2w? epi|epi t2w?|tensor|hardi|noddi|ivim|b0|b1000",
    ),
    (
        "perfusion or dynamic imaging, not one of the four sequences",
        r"perf|perfusion|pwi|dsc|dce|p?c?asl|r?cbv|cbf|mtt|ttp|tmax|ktrans|dyn|dynamic|twist",
    ),
    (
        "susceptibility imaging (T2*), not T2",
        r"swi|swan|qsm|venobold|t2star|t2 star|t2s|hemo|t2w? (?:(?:ax|axial|tra|cor|sag|2d|3d) )?(?:gre|ffe|fl2d)",
    ),
    (
        "angiography, not one of the four sequences",
        r"mra|mrv|tof|angio\w*|venogra\w*|arteriogra\w*|inhance|tricks|mip|minip",
    ),
    (
        "a phase or field map, not one of the four sequences",
        r"phase(?! (?:wrap|oversampling|enc\w*|sens\w*) )|pha images|fieldmap|field map|b[01]map",
    ),
    (
        "a localiser, planning or calibration scan",
        r"loc|locali[sz]ers?|locali[sz]ator|scout|survey|aah\w*scout|3 ?plane|3 ?pl|reperage|topogram|asset ?cal"
        r"|calibration|smartbrain",
    ),
    ("spectroscopy or functional imaging", r"mrsi|spectro\w*|svs|csi|bold|fmri"),
    ("a calculated map, not a scan", r"subtraction|subtracted|subtr|t[12] map\w*|relaxometry"),
    (
        "a fat-suppressed or steady-state sequence (STIR, CISS, FIESTA), not one of the four",
        r"stir|ciss|fiesta",
    ),
    ("the spine, not the brain", r"[ctl]?spine|lumbar|cervical|thoracic|hws|bws|lws|rachis"),
)
# These decide only where no sequence is named: PD, GT or CT may be a patient's initials, and EPI may mean epilepsy.
_WEAK_NOT_INPUTS = _kinds(
    ("proton density, not one of the four sequences", r"pd|pdw|proton density"),
    ("not an MRI", r"ct|cta|pet"),
    ("a gradient-echo scan of unknown weighting", r"gre|ffe"),
    ("a diffusion map, not one of the four sequences", r"fa|md|epi"),
    ("spectroscopy, not one of the four sequences", r"mrs"),
    ("a segmentation or mask, not a scan", r"gt"),
)

# Who and when (BIDS), and the space a volume was moved to, say nothing about its own sequence.
_BIDS_ENTITY = re.compile(r"(?:^|(?<=[_/\s]))(?:sub|ses|run|task|space|desc)-[a-z0-9]+")
_TARGET_SPACE = re.compile(r"(?<= )(?:to|in|on|onto|auf) (?:t1w?|t1ce|t1c|t1gd|t2w?|flair)(?: space)?(?= )")
# "KM_0012_T1" starts with initials and a number, not with a contrast agent.
_INITIALS = re.compile(r"(?<= )(?:km|gd|gad|ce) (?=\d+ (?:.* )?(?:t1|t2|flair|mprage))")


def read_words(text: str) -> NameWords:
    """What the words of a name say about sequence and contrast.

    Word boundaries count: "Gdansk", "T2000" or "T1D" say nothing, "axT1post" is read as "ax t1 post".
    """
    words = _plain(text)
    kind, not_input = _not_input(words, _NOT_INPUTS)
    found = {name: _first(pattern, words) for name, pattern in _PATTERN.items()}
    # What is left when the negations are gone: "without contrast" must not read as "contrast".
    rest = _PATTERN["pre"].sub("", words) if found["pre"] else words
    rest = f" {' '.join(rest.split())} "
    post = _first(_PATTERN["post"], rest) or found["both"]
    t1 = found["t1"] or ("" if found["t2"] or found["flair"] else found["t1_technique"])
    if not (not_input or t1 or found["t2"] or found["flair"]):
        kind, not_input = _not_input(words, _WEAK_NOT_INPUTS)
    return NameWords(
        t1=t1,
        t2=found["t2"],
        flair=found["flair"],
        dual_echo=found["dual_echo"],
        t1_flair=found["t1_flair"],
        post=post,
        post_only="" if post else _first(_PATTERN["post_only"], rest),
        pre=found["pre"],
        not_input=not_input,
        not_input_kind=kind,
    )


def _first(pattern: re.Pattern[str], words: str) -> str:
    match = pattern.search(words)
    return match.group().strip() if match else ""


def _not_input(words: str, table: _KindTable) -> tuple[str, str]:
    for kind, pattern in table:
        word = _first(pattern, words)
        if word:
            return kind, word
    return "", ""


def _plain(text: str) -> str:
    """Lower-case words without accents, separated and surrounded by single blanks; "+C" stays one word."""
    decomposed = unicodedata.normalize("NFKD", text)
    plain = "".join(char for char in decomposed if not unicodedata.combining(char)).lower()
    plain = _BIDS_ENTITY.sub(" ", plain)
    plain = re.sub(r"(?<![a-z0-9])w\s?/\s?(w?)/?o(?![a-z])", lambda m: " with without " if m[1] else " without ", plain)
    plain = re.sub(r"t2w?\s?\*", "t2star", plain)
    plain = re.sub(r"(?<![a-z0-9])[se](?=t[12]w(?![a-z]))", "", plain)  # Philips: sT1W_3D, eT1W_SE
    # "T1+C", "T1 C+", "T1c+" and "T1+" all mean after contrast, "T1 C-" before.
    plain = re.sub(r"\+\s*c(?![a-z0-9])|(?<![a-z0-9])c\s?\+|(?<=t1)c?\+|(?<=t1w)\+", " +c ", plain)
    plain = re.sub(r"(?:(?<![a-z0-9])|(?<=t1))c-(?=[\s\-]|$)", " without c ", plain)
    # "T1 Gd-" and "T1 -KM" too, while "T1-KM" and "T1 - KM" only separate the words.
    plain = re.sub(rf"(?<![a-z0-9])({_AGENTS})\s?-(?=\s|$)|(?<=\s)-({_AGENTS})(?![a-z0-9])", r" without \1\2 ", plain)
    words = [part for word in re.findall(r"\+c|[a-z0-9]+", plain) for part in _unglued(word)]
    joined = _TARGET_SPACE.sub("", f" {' '.join(words)} ")
    return f" {' '.join(_INITIALS.sub('', joined).split())} "


def _unglued(word: str) -> list[str]:
    """`"axt1post"` -> `["ax", "t1", "post"]`; a word that is not made of known words only stays whole."""
    if word in ALIASES["T1Gd"] and word.startswith("t1") and re.fullmatch(_PATTERNS["t1"], word):
        return [word]
    parts = _split(word)
    sequences = _SEQUENCES.split("|")
    contrast = len(parts) > 1 and parts[0] in ("pre", "post", "non") and parts[1] in _AGENTS.split("|")
    # "nonce" is more likely a name than "non-CE".
    if any(part in sequences for part in parts) or (contrast and parts[1] != "ce"):
        return parts
    return [word]


def _split(word: str) -> list[str]:
    if not word:
        return []
    for known in _GLUED:
        if word == known:
            return [known]
        if word.startswith(known):
            rest = _split(word[len(known) :])
            if rest:
                return [known, *rest]
    return []
