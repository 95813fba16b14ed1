"""Published checkpoints that can be given by name: GemNet-OC of the Open Catalyst Project.

Names, addresses and training data are those of fairchem-core 1.10 (`pretrained_models.json`, and `PAGE`). Sizes and
checksums are not published. A download is checked against the length that the server states; then every record of the
file against the checksum that the file has for it; and that all weights of the model are there and finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from eutectic.atoms import EutecticError, did_you_mean
from eutectic.checkpoints.fairchem import LICENCE, PAGE, TRAINING_DATA, read_fairchem_checkpoint
from eutectic.checkpoints.model import TrainedModel, save_model
from eutectic.checkpoints.shipped import CARD, PREFIX
from eutectic.data.catalogue import data_folder
from eutectic.data.dataset import File
from eutectic.data.download import fetch
from eutectic.files import locked, write_atomically

ADDRESS = "https://dl.fbaipublicfiles.com/opencatalystproject/models/"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published checkpoint.

    Attributes:
        title: fairchem's name of it.
        file: below `ADDRESS`.
        trained_on: of `TRAINING_DATA`.
        about: what it is.
    """

    title: str
    file: str
    trained_on: str
    about: str


PUBLISHED = {
    "gemnet-oc-oc20-2m": Published(
        title="GemNet-OC-S2EF-OC20-2M",
        file="2022_07/s2ef/gemnet_oc_base_s2ef_2M.pt",
        trained_on="oc20",
        about="2 million frames of OC20",
    ),
    "gemnet-oc-oc20-all": Published(
        title="GemNet-OC-S2EF-OC20-All",
        file="2022_07/s2ef/gemnet_oc_base_s2ef_all.pt",
        trained_on="oc20",
        about="all frames of OC20",
    ),
    "gemnet-oc-oc20-all-md": Published(
        title="GemNet-OC-S2EF-OC20-All+MD",
        file="2023_03/s2ef/gemnet_oc_base_s2ef_all_md.pt",
        trained_on="oc20",
        about="all frames of OC20, and its molecular dynamics",
    ),
    "gemnet-oc-large-oc20-all-md": Published(
        title="GemNet-OC-Large-S2EF-OC20-All+MD",
        file="2022_07/s2ef/gemnet_oc_large_s2ef_all_md.pt",
        trained_on="oc20",
        about="all frames of OC20, and its molecular dynamics",
    ),
    "gemnet-oc-oc22": Published(
        title="GemNet-OC-S2EFS-OC22",
        file="2022_09/oc22/s2ef/gnoc_oc22_all_s2ef.pt",
        trained_on="oc22",
        about="all frames of OC22",
    ),
    "gemnet-oc-oc20-oc22": Published(
        title="GemNet-OC-S2EFS-OC20+OC22",
        file="2022_09/oc22/s2ef/gnoc_oc22_oc20_all_s2ef.pt",
        trained_on="oc20+oc22",
        about="all frames of OC20 and OC22, total energies",
    ),
    "gemnet-oc-oc20-to-oc22": Published(
        title="GemNet-OC-S2EFS-OC20->OC22",
        file="2022_09/oc22/s2ef/gnoc_finetune_all_s2ef.pt",
        trained_on="oc22",
        about="OC20, then fine-tuned to OC22",
    ),
}
"""Name → checkpoint."""


def published_model(name: str) -> Path:
    """The folder of a published model; downloaded and converted if it is not there.

    Its licence is shown, on standard error, before anything is downloaded.

    Args:
        name: of `PUBLISHED`.

    Raises:
        EutecticError: no such model; the file cannot be downloaded, or is not the expected model; another process is
            downloading it.
        Interrupted: Ctrl-C; received data is kept.
    """
    if name not in PUBLISHED:
        raise EutecticError(
            f"{PREFIX}{name}",
            "no published model of this name",
            f"one of {', '.join(PUBLISHED)}",
            did_you_mean(name, PUBLISHED),
        )
    one, folder = PUBLISHED[name], data_folder() / "models" / "fairchem" / name
    if (folder / "model.json").is_file():
        return folder
    console = Console(stderr=True)
    console.print(f"{PREFIX}{name}: {one.title}, from {ADDRESS}{one.file}", soft_wrap=True, highlight=False)
    console.print(f"licence: {LICENCE} ({PAGE})", soft_wrap=True, highlight=False)
    # One name for each, since two published files have the same.
    downloads = data_folder() / "downloads" / "fairchem"
    with locked(
        folder.with_name(f".{name}.lock"), where=folder, doing="converting this model", fix="wait for it, or stop it"
    ):
        if not (folder / "model.json").is_file():  # another process may just have finished
            by_hand = f"convert it: eutectic import-fairchem {name}.pt -o MODEL"
            path = fetch(File(name=f"{name}.pt", url=ADDRESS + one.file, by_hand=by_hand), downloads)
            try:
                model, _ = read_fairchem_checkpoint(path, trained_on=one.trained_on)
            except EutecticError as error:
                raise EutecticError(
                    error.where,
                    error.given,
                    error.expected,
                    f"delete {path} and run the same command again; if that does not help, convert it by hand with "
                    f"`eutectic import-fairchem`: {error.fix}",
                ) from error
            save_model(folder, model)
            write_atomically(folder / CARD, card(name, model))
            # The folder has all of it that is used, and the file may be a gigabyte.
            path.unlink()
    return folder


def card(name: str, model: TrainedModel) -> str:
    """The model's card, which `eutectic models` shows."""
    one = PUBLISHED[name]
    data = TRAINING_DATA[one.trained_on]
    (task,) = model.tasks
    return f"""# {PREFIX}{name}

{model.provenance["size"]} of the Open Catalyst Project ({one.title}), trained on {one.about}.

    eutectic predict {PREFIX}{name} surfaces.xyz -o predicted.xyz
    eutectic finetune YOUR-DATA -p energy -p forces --model {PREFIX}{name} --out runs/mine

- **Licence**: {LICENCE} ({PAGE}).
- **Energies** are {data.energies}.
- **Level of theory**: {data.level_of_theory}.
- **Elements** of the training data: {data.elements}.
- **Tags** of atoms matter: 0 below the surface, 1 surface, 2 adsorbate; quadruplets need one of
  {" and ".join(map(str, task.graph.quadruplet_tags))}. In a file without tags all atoms have tag 2.
- **From** {ADDRESS}{one.file}, SHA-256 {model.provenance["imported_sha256"]}.

Cite Gasteiger et al., TMLR 2022 (GemNet-OC), and the data: Chanussot et al., ACS Catal. 11, 6059 (2021); for OC22
Tran et al., ACS Catal. 13, 3066 (2023).
"""
