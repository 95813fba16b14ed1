"""Published checkpoints that can be used by name: GemNet-OC of the Open Catalyst Project.

Names, URLs and training data are those of fairchem-core 1.10 (`pretrained_models.json`, and `PAGE`). Sizes and
checksums are not published. A download is checked against the length stated by the server, every record of the file
against its checksum in the file, and all weights for being present and finite.
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
        title: fairchem's name for it.
        file: path below `ADDRESS`.
        trained_on: key in `TRAINING_DATA`.
        about: training data, as text.
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
    """The folder of a published model, downloaded and converted on first use.

    Its licence is shown on standard error before anything is downloaded.

    Args:
        name: key in `PUBLISHED`.

    Raises:
        EutecticError: no such model; the file cannot be downloaded, or is not the expected model; another process is
            downloading it.
        Interrupted: Ctrl-C; data received so far are kept.
    """
    if name not in PUBLISHED:
        raise EutecticError(
            f"{PREFIX}{name}",
            "no published model with this name",
            f"one of {', '.join(PUBLISHED)}",
            did_you_mean(name, PUBLISHED),
        )
    entry, folder = PUBLISHED[name], data_folder() / "models" / "fairchem" / name
    if (folder / "model.json").is_file():
        return folder
    console = Console(stderr=True)
    console.print(f"{PREFIX}{name}: {entry.title}, from {ADDRESS}{entry.file}", soft_wrap=True, highlight=False)
    console.print(f"licence: {LICENCE} ({PAGE})", soft_wrap=True, highlight=False)
    # Named after the model, since two published files have the same name.
    downloads = data_folder() / "downloads" / "fairchem"
    with locked(
        folder.with_name(f".{name}.lock"), where=folder, doing="converting this model", fix="wait for it, or stop it"
    ):
        if not (folder / "model.json").is_file():  # another process may just have finished
            by_hand = f"convert it: eutectic import-fairchem {name}.pt -o MODEL"
            path = fetch(File(name=f"{name}.pt", url=ADDRESS + entry.file, by_hand=by_hand), downloads)
            try:
                model, _ = read_fairchem_checkpoint(path, trained_on=entry.trained_on)
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
            # The model folder has everything needed, and the file may have a gigabyte.
            path.unlink()
    return folder


def card(name: str, model: TrainedModel) -> str:
    """The model's card, shown by `eutectic models`."""
    entry = PUBLISHED[name]
    data = TRAINING_DATA[entry.trained_on]
    (task,) = model.tasks
    return f"""# {PREFIX}{name}

{model.provenance["size"]} of the Open Catalyst Project ({entry.title}), trained on {entry.about}.

    eutectic predict {PREFIX}{name} surfaces.xyz -o predicted.xyz
    eutectic finetune YOUR-DATA -p energy -p forces --model {PREFIX}{name} --out runs/mine

- **Licence**: {LICENCE} ({PAGE}).
- **Energies** are {data.energies}.
- **Level of theory**: {data.level_of_theory}.
- **Elements** of the training data: {data.elements}.
- **Tags** of atoms matter: 0 below the surface, 1 surface, 2 adsorbate; quadruplets need one of
  {" and ".join(map(str, task.graph.quadruplet_tags))}. In a file without tags, all atoms get tag 2.
- **Source**: {ADDRESS}{entry.file}, SHA-256 {model.provenance["imported_sha256"]}.

Cite Gasteiger et al., TMLR 2022 (GemNet-OC), and the data: Chanussot et al., ACS Catal. 11, 6059 (2021); for OC22
Tran et al., ACS Catal. 13, 3066 (2023).
"""
