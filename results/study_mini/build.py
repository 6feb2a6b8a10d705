"""Copy the tables and the page of the study, and print the claims as the table of README.md.

python results/study_mini/build.py runs/study_mini/study results/study_mini
"""

import csv
import shutil
import sys
from pathlib import Path


def main(study: Path, out: Path) -> None:
    (out / "tables").mkdir(parents=True, exist_ok=True)
    for path in sorted((study / "tables").glob("*.csv")):
        shutil.copy(path, out / "tables" / path.name)
    page = (study / "report.html").read_text(encoding="utf-8")
    (out / "report.html").write_text(page, encoding="utf-8")
    print("| item | claim | here | why |\n|---|---|---|---|")
    with (study / "tables" / "claims.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            print(f"| {row['item']} | {row['claim']} | **{row['status']}** | {row['why']} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
