"""The label files of data sets' own archives, made small in their layout: names, labels, signs and units."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pytest
import scipy.io

from qalign_fast.errors import ListError
from qalign_fast.evaluation.lists import LabelList, read_list

ROOT = Path(__file__).parents[2]


def rows_of(found: LabelList) -> list[tuple[str, float, str]]:
    return [(entry.name, entry.label, entry.unit) for entry in found.entries]


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(ListError) as caught:
        read_list(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_koniqs_sets_give_the_test_part(tmp_path: Path) -> None:
    header = "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set"
    path = written(
        tmp_path / "koniq10k_distributions_sets.csv",
        header,
        "1.jpg,0.0,0.0,0.2,0.7,0.1,105,77.38,0.53,training",
        "2.jpg,0.0,0.1,0.4,0.5,0.0,96,68.73,0.58,test",
        "3.jpg,0.0,0.1,0.4,0.5,0.0,96,60.5,0.58,validation",
    )
    found = read_list(path)
    assert (found.form, found.medium, found.task, found.lower_better) == ("koniq10k", "image", "quality", False)
    assert rows_of(found) == [("2.jpg", 68.73, "2.jpg")]
    assert found.notes == ("1 of 3 entries: 'set' is test",)
    assert [row[0] for row in rows_of(read_list(path, split="train"))] == ["1.jpg"]
    assert len(read_list(path, split="all").entries) == 3


def test_koniqs_scores_are_the_scaled_ones_as_in_its_sets(tmp_path: Path) -> None:
    header = '"image_name","c1","c2","c3","c4","c5","c_total","MOS","SD","MOS_zscore"'
    path = written(
        tmp_path / "koniq10k_scores_and_distributions.csv", header, '"1.jpg",0,0,25,73,7,105,3.83,0.53,77.38'
    )
    assert rows_of(read_list(path)) == [("1.jpg", 77.38, "1.jpg")]
    assert read_list(path).notes == ("labels are of the column 'MOS_zscore'",)
    assert rows_of(read_list(path, column="MOS")) == [("1.jpg", 3.83, "1.jpg")]


def test_spaqs_spreadsheet(tmp_path: Path) -> None:
    path = tmp_path / "MOS and Image attribute scores.xlsx"
    book = openpyxl.Workbook()
    book.active.append(["Image name", "MOS", "Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness"])
    book.active.append(["00001.jpg", 48.86, 47.43, 55.57, 55.71, 37.86, 42.57])
    book.active.append(["00002.jpg", 62, 55, 67, 53, 57, 47])
    book.save(path)
    found = read_list(path)
    assert (found.form, found.task, found.lower_better) == ("spaq", "quality", False)
    assert rows_of(found) == [("00001.jpg", 48.86, "00001.jpg"), ("00002.jpg", 62, "00002.jpg")]
    assert rows_of(read_list(path, column="Sharpness"))[0][1] == 42.57
    assert read_list(path, column="Sharpness").task is None


def test_kadids_dmos_is_higher_for_better_pictures(tmp_path: Path) -> None:
    path = written(tmp_path / "dmos.csv", "dist_img,ref_img,dmos,var", "I01_01_01.png,I01.png,4.57,0.496")
    found = read_list(path)
    assert (found.form, found.lower_better) == ("kadid10k", False)
    assert rows_of(found) == [("I01_01_01.png", 4.57, "I01")]
    asked = read_list(path, lower_better=True)
    assert asked.lower_better
    assert asked.notes == ("lower is better, as was asked; in the form kadid10k higher is better",)


def wild(folder: Path, count: int = 9) -> Path:
    names = [f"t{i + 1}.bmp" if i < 7 else f"{i}.JPG" for i in range(count)]
    cells = np.empty((count, 1), object)
    cells[:, 0] = [np.array([name]) for name in names]
    scipy.io.savemat(folder / "AllImages_release.mat", {"AllImages_release": cells})
    scipy.io.savemat(folder / "AllMOS_release.mat", {"AllMOS_release": np.arange(count)[None] + 0.5})
    return folder / "AllMOS_release.mat"


def test_live_in_the_wild_leaves_its_training_pictures_out(tmp_path: Path) -> None:
    path = wild(tmp_path)
    found = read_list(path)
    assert (found.form, found.lower_better, found.task) == ("livec", False, "quality")
    assert rows_of(found) == [("7.JPG", 7.5, "7.JPG"), ("8.JPG", 8.5, "8.JPG")]
    assert found.notes == ("the first 7 pictures, which trained the raters, are left out",)
    kept = rows_of(read_list(path, split="all"))
    assert len(kept) == 9
    assert kept[0] == ("trainingImages/t1.bmp", 0.5, "trainingImages/t1.bmp")
    assert rows_of(read_list(tmp_path / "AllImages_release.mat")) == rows_of(found)


def test_live_in_the_wild_needs_both_files_of_one_length(tmp_path: Path) -> None:
    path = wild(tmp_path)
    scipy.io.savemat(path, {"AllMOS_release": np.zeros((1, 8))})
    assert "8 labels for 9 names" in refusal(path)
    (tmp_path / "AllImages_release.mat").unlink()
    assert "it needs AllImages_release.mat beside it" in refusal(path)
    assert "split 'val': expected test or all" in refusal(path, split="val")


FOLDERS = [("jp2k", 227), ("jpeg", 233), ("wn", 174), ("gblur", 174), ("fastfading", 174)]


def live(folder: Path, *, label: str = "dmos", references: bool = True) -> tuple[Path, np.ndarray, np.ndarray]:
    """Labels, and marks of references: every fifth."""
    dmos = np.random.default_rng(0).uniform(10, 90, 982)
    orgs = (np.arange(982) % 5 == 0).astype(np.uint8)
    dmos[orgs == 1] = 0
    scipy.io.savemat(folder / "dmos.mat", {label: dmos[None], "orgs": orgs[None]})
    if references:
        cells = np.empty((1, 982), object)
        cells[0] = [np.array([f"ref{i % 29}.bmp"]) for i in range(982)]
        scipy.io.savemat(folder / "refnames_all.mat", {"refnames_all": cells})
    return folder / "dmos.mat", dmos, orgs


@pytest.mark.parametrize("label", ["dmos", "dmos_new"])
def test_live_release_2_leaves_its_references_out(label: str, tmp_path: Path) -> None:
    path, dmos, orgs = live(tmp_path, label=label)
    names = [f"{folder}/img{i}.bmp" for folder, count in FOLDERS for i in range(1, count + 1)]
    expected = [(name, dmos[i], f"ref{i % 29}") for i, name in enumerate(names)]
    found = read_list(path)
    assert (found.form, found.lower_better, found.medium) == ("live", True, "image")
    assert rows_of(found) == [row for row, original in zip(expected, orgs) if not original]
    assert found.notes == (f"{orgs.sum()} references are left out",)
    assert rows_of(read_list(path, split="all")) == expected


def test_live_release_2_without_names_of_references_says_what_is_lost(tmp_path: Path) -> None:
    found = read_list(live(tmp_path, references=False)[0])
    assert found.entries[0].unit == "jp2k/img2.bmp"
    assert any("intervals are too narrow" in note for note in found.notes)


def test_live_release_2_of_another_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dmos.mat"
    scipy.io.savemat(path, {"dmos": np.zeros((1, 981)), "orgs": np.zeros((1, 981))})
    assert "981 labels and 981 marks of references; expected 982 of both" in refusal(path)


def test_other_and_damaged_mat_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.mat"
    scipy.io.savemat(path, {"scores": np.zeros(3)})
    assert "its variables are scores; expected AllMOS_release" in refusal(path)
    whole = live(tmp_path)[0].read_bytes()
    for end in [0, 1, 20, 127, *range(128, len(whole), 997)]:
        path.write_bytes(whole[:end])
        assert refusal(path)
    path.write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM\x89HDF")
    assert "saved again with -v7" in refusal(path)


SHEET = ["image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos"]
DISTORTED = [
    [1600, 1, "noise", 1, 0.03, 0.062, "awgn/1600.AWGN.1.png"],
    [1600, 1, "noise", 2, 0.03, 0.206, "awgn/1600.AWGN.2.png"],
    ["boston", 2, "jpeg", 1, 0.1, 0.0, "jpeg/boston.JPEG.1.png"],
    ["boston", 2, "jpeg", 2, 0.1, 0.05, "jpeg/boston.JPEG.2.png"],
    ["boston", 3, "jpeg 2000", 4, 0.1, 0.6, "jpeg2000/boston.jpeg2000.4.png"],
    ["boston", 3, "jpeg 2000", 5, 0.1, 0.9, "jpeg2000/boston.jpeg2000.5.png"],
    ["boston", 4, "fnoise", 3, 0.1, 0.4, "fnoise/boston.fnoise.3.png"],
    ["boston", 5, "blur", 2, 0.1, 0.1, "blur/boston.BLUR.2.png"],
    ["boston", 5, "blur", 3, 0.1, 0.2, "blur/boston.BLUR.3.png"],
    ["boston", 6, "contrast", 1, 0.1, 0.1, "contrast/boston.contrast.1.png"],
]
CSIQ_ROWS = [(row[6], row[5], str(row[0])) for row in DISTORTED]


def test_csiqs_spreadsheet(tmp_path: Path) -> None:
    path = tmp_path / "csiq.DMOS.xlsx"
    book = openpyxl.Workbook()
    book.active.title = "all_by_distortion"
    sheet = book.create_sheet("all_by_image")
    sheet.append(["CSIQ: all by image"])
    sheet["D4"] = "image"  # as there: three rows and three columns of titles
    for column, name in enumerate(SHEET, 4):
        sheet.cell(4, column, name)
    for line, row in enumerate(DISTORTED, 5):
        for column, value in enumerate(row[:6], 4):
            sheet.cell(line, column, value)
    sheet["A30"] = "a remark below"
    book.save(path)
    found = read_list(path)
    assert (found.form, found.lower_better, found.task) == ("csiq", True, "quality")
    assert rows_of(found) == CSIQ_ROWS
    assert "has one label and no splits" in refusal(path, column="dmos_std")
    sheet["F5"] = "pink noise"
    book.save(path)
    assert "line 5: distortion 'pink noise'; expected one of: noise, blur" in refusal(path)


@pytest.mark.parametrize("suffix", ["", ".png"])
def test_csiqs_labels_as_text(suffix: str, tmp_path: Path) -> None:
    names = [row[6].rpartition("/")[2].removesuffix(".png") for row in DISTORTED]
    lines = [f"{name}{suffix} {row[5]}" for name, row in zip(names, DISTORTED)]
    found = read_list(written(tmp_path / "csiq_label.txt", *lines))
    assert (found.form, found.lower_better) == ("csiq", True)
    assert rows_of(found) == [(f"{name}.png", row[5], str(row[0])) for name, row in zip(names, DISTORTED)]


def test_csiqs_labels_as_a_table_of_tabs(tmp_path: Path) -> None:
    lines = ["\t".join(map(str, row[:6])) for row in DISTORTED]
    assert rows_of(read_list(written(tmp_path / "csiq.beta.txt", *lines))) == CSIQ_ROWS


def test_avas_label_is_the_mean_vote(tmp_path: Path) -> None:
    path = written(
        tmp_path / "AVA.txt", "1 953619 0 1 5 17 38 36 15 6 5 1 1 22 1396", "2 953958 10 0 0 0 0 0 0 0 0 10 15 21 1396"
    )
    found = read_list(path)
    votes = np.array([0, 1, 5, 17, 38, 36, 15, 6, 5, 1])
    mean = (votes * np.arange(1, 11)).sum() / votes.sum()
    assert rows_of(found) == [("953619.jpg", pytest.approx(mean), "953619.jpg"), ("953958.jpg", 5.5, "953958.jpg")]
    assert (found.form, found.task, found.lower_better) == ("ava", "aesthetics", False)
    without = written(tmp_path / "b.txt", "1 953619 0 0 0 0 0 0 0 0 0 0 1 22 1396")
    assert "line 1 (953619): it has no votes" in refusal(without)


def test_agiqa_has_two_labels_and_its_prompts_are_units(tmp_path: Path) -> None:
    path = written(
        tmp_path / "data.csv",
        "name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align",
        'AttnGAN_normal_000.jpg,"statue of a man, sitting",,,,0.9656,0.2,0.5,0.1',
        'sd1.5_lowcorr_000.jpg,"statue of a man, sitting",,,,2.5,0.2,3.5,0.1',
        "xl2.2_normal_299.jpg,a cat,,,,3.6,0.2,4.1,0.1",
    )
    found = read_list(path)
    assert (found.form, found.task, found.lower_better) == ("agiqa3k", "quality", False)
    assert [(row[1], row[2]) for row in rows_of(found)] == [(0.9656, "000"), (2.5, "000"), (3.6, "299")]
    align = read_list(path, column="mos_align")
    assert [row[1] for row in rows_of(align)] == [0.5, 3.5, 4.1]
    assert align.task is None


LSVQ = "name,p1,p2,p3,height,width,mos_p1,mos_p2,mos_p3,mos,frame_number"


def test_lsvqs_tables(tmp_path: Path) -> None:
    rows = ["yfcc-batch1/747,a,b,c,540,960,60,61,62,67.75,200", "ia-batch4/A, b,a,b,c,540,960,60,61,62,64.85,200"]
    rows[1] = rows[1].replace("ia-batch4/A, b", '"ia-batch4/A, b.mp4"')
    path = written(tmp_path / "labels_test_1080p.csv", LSVQ, *rows)
    expected = [("yfcc-batch1/747.mp4", 67.75), ("ia-batch4/A, b.mp4", 64.85)]
    assert [row[:2] for row in rows_of(read_list(path))] == expected
    path = written(tmp_path / "labels_train_test.csv", f"{LSVQ},is_test", f"{rows[0]},False", f"{rows[1]},True")
    found = read_list(path)
    assert (found.form, found.medium, found.task) == ("lsvq", "video", "quality")
    assert [row[:2] for row in rows_of(found)] == expected[1:]
    assert [row[:2] for row in rows_of(read_list(path, split="train"))] == expected[:1]


@pytest.mark.parametrize("number", ["3339962845", "3339962845.0"])
def test_konvids_table_has_numbers_for_names(number: str, tmp_path: Path) -> None:
    found = read_list(written(tmp_path / "KoNViD_1k_mos.csv", '"flickr_id","mos"', f"{number},4.64"))
    assert (found.form, found.medium, found.lower_better) == ("konvid1k", "video", False)
    assert rows_of(found) == [("3339962845.mp4", 4.64, "3339962845.mp4")]


def test_maxwells_table_names_no_clips_and_says_what_does(tmp_path: Path) -> None:
    header = "O,A-1,A-2,A-3,A-4,A-5,A-all,T-1,T-2,T-3,T-4,T-5,T-6,T-7,T-8,T-all"
    said = refusal(written(tmp_path / "MaxWell_val.csv", header, ",".join(["1.5"] * 16)))
    assert "names no clips" in said
    assert "val_labels.txt" in said


@pytest.mark.parametrize("missing", ["scipy", "openpyxl"])
def test_a_package_that_is_missing_is_one_line_that_helps(missing: str, tmp_path: Path) -> None:
    path = wild(tmp_path) if missing == "scipy" else tmp_path / "a.xlsx"
    if missing == "openpyxl":
        openpyxl.Workbook().save(path)
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from qalign_fast import MissingExtraError\n"
        "from qalign_fast.evaluation.lists import read_list\n"
        f"try: read_list({str(path)!r})\nexcept MissingExtraError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "pip install 'qalign-fast[evaluate]'" in run.stdout
    assert len(run.stdout.splitlines()) == 1


def test_lists_are_read_without_heavy_packages() -> None:
    code = (
        "import sys, qalign_fast.evaluation.lists; print({'scipy', 'openpyxl', 'torch', 'pandas'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
