"""The columns of data sets' own label files, as a table: what tells the layout, and what each column is."""

from __future__ import annotations

from dataclasses import dataclass

# of tables that are in no layout; compared as `key_of` writes them
NAMES = tuple(
    "image img name img_name image_name image_path img_path filename file_name file path dist_img dist_name"
    " video video_name".split()
)
LABELS = tuple("mos gt_score label score dmos elo_score".split())
UNITS = ("ref_name", "ref_img", "hq_name", "reference", "unit")


def key_of(column: str) -> str:
    """A column's name as layouts write it: "Image name" is image_name."""
    return column.strip().casefold().replace(" ", "_").replace("-", "_")


@dataclass(frozen=True)
class Layout:
    """A file's columns, by their keys.

    told_by: the columns that tell this layout. unit: where it has a column for the source unit. suffix: of names that
    have none. split: the column by which test entries are chosen. refused: why a file of this layout is no list.
    lower_better: None where labels must tell it.
    """

    form: str
    told_by: tuple[str, ...]
    name: str
    label: str
    lower_better: bool | None = None
    task: str | None = None
    unit: str | None = None
    suffix: str = ""
    split: str | None = None
    refused: str = ""


def _columns(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# the first that fits is taken
LAYOUTS = (
    # koniq10k_distributions_sets.csv
    Layout(
        "koniq10k", _columns("image_name c1 c_total mos sd set"), "image_name", "mos", False, "quality", split="set"
    ),
    # koniq10k_scores_and_distributions.csv: MOS is on 1..5, MOS_zscore on 0..100 as in the file of sets
    Layout("koniq10k", _columns("image_name c1 c_total mos mos_zscore"), "image_name", "mos_zscore", False, "quality"),
    # dmos.csv: its DMOS is higher for better pictures
    Layout("kadid10k", _columns("dist_img ref_img dmos var"), "dist_img", "dmos", False, "quality", unit="ref_img"),
    # MOS and Image attribute scores.xlsx, and pyiqa's table of it
    Layout("spaq", _columns("image_name mos brightness colorfulness noisiness"), "image_name", "mos", False, "quality"),
    # data.csv
    Layout(
        "agiqa3k", _columns("name prompt mos_quality mos_align"), "name", "mos_quality", False, "quality", unit="prompt"
    ),
    # labels_train_test.csv, and labels_test_1080p.csv, which has no is_test
    Layout(
        *("lsvq", _columns("name mos mos_p1 is_test"), "name", "mos", False, "quality"), suffix=".mp4", split="is_test"
    ),
    Layout("lsvq", _columns("name mos mos_p1"), "name", "mos", False, "quality", suffix=".mp4"),
    # KoNViD_1k_mos.csv
    Layout("konvid1k", _columns("flickr_id mos"), "flickr_id", "mos", False, "quality", suffix=".mp4"),
    # MaxWell_val.csv
    Layout(
        *("maxwell", _columns("o a_all t_all"), "", "o"),
        refused="MaxWell's table names no clips; take the list with the same labels in the same order and names:"
        " val_labels.txt or train_labels.txt of DOVER, lines of path, technical, aesthetic, overall",
    ),
)
