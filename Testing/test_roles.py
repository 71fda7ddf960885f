import re
from pathlib import Path

import pytest
from MSTKDSegmentLib.roles import propose_from_dicom, propose_from_name
from role_names import AMBIGUOUS, NAMES, NO_INPUT, UNKNOWN


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_role_from_a_name(name, expected):
    proposal = propose_from_name(name)
    assert (proposal.modality, proposal.certainty) == expected, proposal.reason
    assert proposal.source == name
    assert proposal.reason and "\n" not in proposal.reason
    if proposal.modality:
        assert proposal.modality in proposal.candidates


def test_the_table_of_names_is_a_broad_one():
    assert len(NAMES) >= 80


def test_separators_and_case_of_a_path_do_not_matter():
    by_path = propose_from_name(Path("cases") / "Case1" / "CASE1_T1CE.NII.GZ")
    assert by_path.modality == "T1Gd"
    assert propose_from_name("C:\\cases\\T1 GD\\scan.nii").modality == "T1Gd"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a_t1ce.nii.gz", '"t1ce" in the file name means T1 after gadolinium'),
        ("SPGR GD", '"spgr" and "gd" in the name mean T1 after gadolinium'),
        ("a_t1.nii.gz", "contrast is not named"),
        ("FLAIR POST GD", 'after contrast according to "post gd"'),
        ("BRATS_001_0000.nii.gz", "Medical Segmentation Decathlon"),
        ("BRATS_001.nii.gz", "4-D"),
        ("T1 POST", "after surgery"),
        ("T1 pre post", 'before \\("pre"\\) and after \\("post"\\)'),
        ("a_seg.nii.gz", '"seg" in the file name means a segmentation'),
        ("T1 GD/scan.nii", "in the folder name"),
        ("Ax T1 FLAIR", "T1-weighted inversion recovery"),
    ],
)
def test_reasons_name_the_word_and_what_it_means(name, reason):
    assert re.search(reason, propose_from_name(name).reason)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"SeriesDescription": "AX T1 SE"}, ("T1", "likely")),
        ({"SeriesDescription": "AX T1 SE", "ContrastBolusAgent": "8 ML GADAVIST"}, ("T1Gd", "certain")),
        ({"SeriesDescription": "AX T1 SE", "ContrastBolusAgent": "NONE"}, ("T1", "certain")),
        ({"SeriesDescription": "AX T1 SE", "ContrastBolusAgent": "NO"}, ("T1", "certain")),
        ({"SeriesDescription": "AX T1 SE", "ContrastBolusAgent": "0"}, ("T1", "certain")),
        ({"SeriesDescription": "AX T1 SE", "ContrastBolusAgent": " "}, ("T1", "likely")),
        ({"SeriesDescription": "MPRAGE", "ContrastBolusAgent": "Gd-DTPA"}, ("T1Gd", "certain")),
        ({"SeriesDescription": "AX T1 POST", "ContrastBolusAgent": "MAGNEVIST"}, ("T1Gd", "certain")),
        ({"SeriesDescription": "AX T1 PRE", "ContrastBolusAgent": "MAGNEVIST"}, AMBIGUOUS),
        ({"SeriesDescription": "AX T1 POST GD", "ContrastBolusAgent": "NONE"}, AMBIGUOUS),
        ({"SeriesDescription": "AX FLAIR", "ContrastBolusAgent": "MAGNEVIST"}, ("FLAIR", "likely")),
        ({"SeriesDescription": "AX T2", "ContrastBolusAgent": "none given"}, ("T2", "certain")),
        ({"SeriesDescription": "BRAIN", "ProtocolName": "t2_tse_tra"}, ("T2", "certain")),
        ({"SeriesDescription": "AX T1", "ProtocolName": "BRAIN W WO GAD"}, ("T1", "likely")),
        ({"SeriesDescription": "POST GD", "ProtocolName": "t1_se_tra"}, ("T1Gd", "certain")),
        ({"SeriesDescription": "AX DWI"}, NO_INPUT),
        ({"SeriesDescription": "Apparent Diffusion Coefficient"}, NO_INPUT),
        ({"SeriesDescription": "ep2d_perf"}, NO_INPUT),
        ({"SeriesDescription": "DTI 64 dir"}, NO_INPUT),
        ({"SeriesDescription": "TRACEW"}, NO_INPUT),
        ({"SeriesDescription": "AX SWI"}, NO_INPUT),
        ({"SeriesDescription": "localizer"}, NO_INPUT),
        ({"SeriesDescription": "3D TOF MRA"}, NO_INPUT),
        ({"SeriesDescription": "Pha_Images"}, NO_INPUT),
        ({"SeriesDescription": "AX T2", "ImageType": "DERIVED\\SECONDARY\\ADC"}, NO_INPUT),
        ({"SeriesDescription": "T1", "ImageType": "ORIGINAL\\PRIMARY\\M\\ND\\NORM"}, ("T1", "likely")),
        ({"SeriesDescription": "sT1W_3D_TFE", "ImageType": "ORIGINAL\\PRIMARY\\M_FFE\\M\\FFE"}, ("T1", "likely")),
        ({"SeriesDescription": "sT1W_3D_TFE_GD", "ImageType": "ORIGINAL\\PRIMARY\\M_FFE\\M\\FFE"}, ("T1Gd", "certain")),
        ({"SeriesDescription": "T1", "ImageType": "DERIVED\\PRIMARY\\FA\\M_FFE"}, NO_INPUT),
        ({"SeriesDescription": "MR BRAIN WITHOUT AND WITH T1"}, AMBIGUOUS),
        ({"SeriesDescription": "AX T1", "ProtocolName": "BRAIN WITHOUT AND WITH"}, ("T1", "likely")),
        ({"SeriesDescription": "T1", "Modality": "SEG"}, NO_INPUT),
        ({"SeriesDescription": "AX FLAIR", "EchoTime": "120", "RepetitionTime": "9000"}, ("FLAIR", "certain")),
        ({"SeriesDescription": "AX FLAIR", "EchoTime": "9", "RepetitionTime": "600"}, AMBIGUOUS),
        ({"SeriesDescription": "AX T2", "EchoTime": "120", "InversionTime": "2500"}, AMBIGUOUS),
        ({"SeriesDescription": "T1 FLAIR", "EchoTime": "9", "InversionTime": "900"}, ("T1", "likely")),
        ({"EchoTime": "120", "RepetitionTime": "9000", "InversionTime": "2500"}, ("FLAIR", "likely")),
        ({"EchoTime": "100", "RepetitionTime": "5000"}, UNKNOWN),
        ({"EchoTime": "not a number", "RepetitionTime": ""}, UNKNOWN),
        ({}, UNKNOWN),
    ],
)
def test_role_from_dicom_tags(tags, expected):
    proposal = propose_from_dicom(tags)
    assert (proposal.modality, proposal.certainty) == expected, proposal.reason


def test_a_contradiction_in_dicom_tags_gives_both_facts():
    proposal = propose_from_dicom({"SeriesDescription": "AX T1 PRE", "ContrastBolusAgent": "Dotarem"})
    assert '"pre"' in proposal.reason and "Dotarem" in proposal.reason
    assert proposal.candidates == ("T1", "T1Gd")


def test_times_alone_only_suggest():
    proposal = propose_from_dicom({"EchoTime": "100", "RepetitionTime": "5000"})
    assert proposal.candidates == ("T2",)
    assert "100 ms" in proposal.reason


def test_the_name_stands_in_where_descriptions_say_nothing():
    tags = {"SeriesDescription": "BRAIN", "ContrastBolusAgent": "Gadovist"}
    proposal = propose_from_dicom(tags, fallback_name="case/7_t1_tra")
    assert (proposal.source, proposal.modality) == ("case/7_t1_tra", "T1Gd")
