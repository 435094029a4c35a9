"""The pieces of certify.py: the certificates of one model, the attacks on them, tables and plots."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from tqdm import tqdm

from src.commands import selection
from src.commands.shared_rows import Opening, collect
from src.config import Config
from src.datasets import store
from src.distributed import Team, choose_device
from src.evaluation import smoothed_attacks
from src.files import fingerprint
from src.output import figures, results
from src.registry import DEFENSES
from src.smoothing import (
    CERTIFICATE_FIELDS,
    UNITS,
    Certificate,
    Certifier,
    ShapedNoise,
    certificate_notes,
    check_certifiable,
    summary,
)
from src.victims import checkpoint
from src.victims.adaptive import adaptive
from src.victims.chain import Chain, with_lengths
from src.victims.victim import Victim

CertificateRows = list[dict[str, str]]


class CertificationRun:
    """One model: its certificates, the attacks on them, tables and plots."""

    def __init__(
        self,
        config: Config,
        model: selection.Trained,
        shaped: ShapedNoise | None,
        clips: store.Clips,
        idx: list[int],
        members: Team,
    ):
        self.config, self.settings, self.members = config, config.certify, members
        self.model, self.victim, self.shaped = model.name, model.victim, shaped
        self.clips = clips = clips.relabeled(model.victim.classes)
        self.row_of = {number: i for i, number in enumerate(idx)}
        self.device = choose_device(config.training.use_cuda)
        self.frozen = model.victim.to(self.device).frozen()
        check_certifiable(self.frozen)
        head, tail = self.frozen.split(self.settings.stage)
        # The same votes; where the attack needs a gradient, a defense without one passes that of its substitute.
        attacked_tail = adaptive(tail)
        assert isinstance(attacked_tail, Chain), "a randomized chain was refused above"
        self.certifier = Certifier(head, attacked_tail, self.settings, clips.sample_rate, shaped)
        self.baseline_victims = self.baselines()
        self.folder = config.results.results_dir / "certify"
        self.name = f"{self.model}.{self.settings.space}"
        self.identity = {
            "model": model.weights,
            "clips": clips.fingerprint(),
            "shape": shaped and fingerprint(shaped.amplitude.numpy()),
            "device": self.device.type,
            "defenses": checkpoint.defenses_of(model.victim),
            **self.settings.identity(),
        }

    def clip(self, number: int) -> tuple[torch.Tensor, int, str, torch.Tensor]:
        """(waveform, label, id, valid samples) of clip `number` of the test split."""
        i = self.row_of[number]
        x, valid = (part[0].to(self.device) for part in (self.clips.waveforms([i]), self.clips.valid([i])))
        return x, int(self.clips.labels[i]), self.clips.ids[i], valid

    def collect(
        self, opening: Opening, items: Sequence[Sequence[Any]], compute: Callable[..., Iterable[Any]], title: str
    ) -> CertificateRows:
        """The rows of `items` (the key of each); those of this process's share that are missing are computed."""

        def missing(rows: results.RowFile) -> Sequence[Sequence[Any]]:
            for key in tqdm(self.members.share(items), title, unit="clip", disable=not self.members.leads):
                if tuple(key) not in rows:
                    start = time.perf_counter()
                    values = compute(*key)
                    rows.write(dict(zip(rows.fields, (*values, round(time.perf_counter() - start, 3)), strict=True)))
            return items

        return collect(self.members, opening, missing)

    def certify(self) -> dict[float, CertificateRows]:
        """The rows of every sigma."""
        rows_by_sigma = {}
        for sigma in self.settings.sigma:

            def certificate(number: int, sigma: float = sigma) -> tuple[Any, ...]:
                x, label, example, valid = self.clip(number)
                result = self.certifier(x, example, sigma, valid)
                return number, example, label, result.label, result.radius, result.correct(label), result.n_used

            file = self.folder / f"{self.name}.{sigma:g}.rows.csv"
            opening = (file, CERTIFICATE_FIELDS, ["idx"], {**self.identity, "sigma": sigma})
            title = f"{self.model}, {self.settings.space}, sigma {sigma:g}"
            rows_by_sigma[sigma] = self.collect(opening, [(n,) for n in self.row_of], certificate, title)
        return rows_by_sigma

    def attack(self, rows: dict[float, CertificateRows]) -> CertificateRows:
        """The rows of the attacks on the smoothed model and, beside a table, on the model behind each defense."""
        settings, numbers = self.settings, list(self.row_of)
        row_of_clip = {(sigma, int(row["idx"])): row for sigma, sigma_rows in rows.items() for row in sigma_rows}
        count = min(settings.attack_clips, len(numbers))
        items: list[tuple[Any, ...]] = []
        for sigma, sigma_rows in rows.items():
            best = max(sigma_rows, key=lambda row: float(row["radius"]) * int(row["correct"]))
            checked_numbers = [int(best["idx"])] if int(best["correct"]) else []
            attacked_numbers = [numbers[i * len(numbers) // count] for i in range(count)] or checked_numbers
            items += [("smoothed", sigma, number) for number in attacked_numbers]
        chains = {}
        if count and settings.baselines and settings.kind == "noise" and settings.space == "waveform":
            chains = smoothed_attacks.waveform_chains({"undefended": self.victim.undefended(), **self.baseline_victims})
            items += [(name, "none", numbers[i * len(numbers) // count]) for name in chains for i in range(count)]
        bounds = self.victim.bounds(settings.stage)

        def outcome(classifier: str, sigma: Any, number: int) -> tuple[Any, ...]:
            x, label, example, valid = self.clip(number)
            if classifier == "smoothed":
                row = row_of_clip[sigma, number]
                known = Certificate(int(row["predict"]), float(row["radius"]), int(row["n_used"]))
                radii = settings.radii if count else ()
                columns = smoothed_attacks.attack_smoothed(
                    self.certifier, bounds, x, label, example, sigma, known, radii, valid
                )
            else:
                chain = with_lengths(chains[classifier], valid[None])
                columns = smoothed_attacks.attack_defended(chain, settings, x, label, example, classifier)
            return classifier, sigma, number, example, label, *columns.values()

        attack_settings = {key: getattr(settings, key) for key in ("attack_steps", "attack_draws", "attack_n", "radii")}
        # All configured defenses, not only the baselines, so that rows are still valid when a baseline is added.
        options = {name: keys for name in DEFENSES.names() if (keys := self.config.component("DEFENSE", name))}
        identity = {**self.identity, **attack_settings, "check only": not count, "defense options": options}
        opening = (
            self.folder / f"{self.name}.attacks.csv",
            smoothed_attacks.SMOOTHED_ATTACK_FIELDS,
            ["classifier", "sigma", "idx"],
            identity,
        )
        return self.collect(opening, items, outcome, f"{self.model}, {settings.space}, attacks")

    def baselines(self) -> dict[str, Victim]:
        """The model behind each baseline defense that this sample rate admits."""
        victims, plain = {}, self.victim.undefended()
        for name in self.settings.baselines if self.settings.attack_clips else ():
            entries = selection.configured_defenses(self.config, [name])
            try:
                checkpoint.build_defense(name, plain.sample_rate, entries[0]["options"])
            except ValueError as error:
                print(f"not attacked: {name} ({error})")
                continue
            victims[name] = checkpoint.defend(plain, entries)
        return victims

    def report(self, rows: dict[float, CertificateRows], attacked: CertificateRows) -> bool:
        """Tables, plots and manifest; whether an attack contradicts a certificate."""
        settings, clips, shaped, name = self.settings, self.clips, self.shaped, self.name
        verdict, contradicted = summary.certificate_verdict(attacked, settings.alpha)
        notes = [
            *certificate_notes(settings),
            *(smoothed_attacks.attack_notes(settings) if settings.attack_clips else ()),
            verdict,
        ]
        if self.victim.defenses:
            behind = selection.describe(checkpoint.defenses_of(self.victim))
            notes.append(f"The certified model stands behind {behind}; the vote counts what comes out behind it.")
        if clips.synthetic:
            notes.append(selection.SYNTHETIC)
        sizes = {example: float(clips.waveforms([i]).norm()) for i, example in enumerate(clips.ids)}
        lipschitz = self.victim.lipschitz(settings.stage) if settings.kind == "noise" else None
        weakest, bands = (shaped.l2(), shaped.bands(clips.sample_rate)) if shaped else (1.0, None)
        groups, shown = summary.speaker_groups(self.victim.classes), attacked if settings.attack_clips else []
        tables = summary.tables(rows, shown, settings.radii, sizes, lipschitz, weakest, bands, groups)
        for what, lines in tables.items():
            title = f"{summary.TITLES[what]}: {self.model} ({settings.space}), {len(clips)} clips"
            results.write_table(self.folder / f"{name}.{what}.csv", lines, title, notes)
            if what != "curves":
                print(f"{title}\n\n{results.markdown(lines)}")
        facts = {"notes": notes, "lipschitz": lipschitz, "synthetic": clips.synthetic, **self.certified()}
        results.write_manifest(self.folder / f"{name}.manifest.json", {"config": self.config.text, **facts})
        curves, source_note = tables["curves"], " (synthetic speech)" if clips.synthetic else ""
        figures.certified(
            self.config.results.plot_dir / f"certified_accuracy.{name}.png",
            [line["radius"] for line in curves],
            {key: [line[key] for line in curves] for key in curves[0] if key.startswith("sigma")},
            best=[line["best"] for line in curves],
            x_label=f"radius ({UNITS[settings.kind]})",
            title=f"{self.model}, {settings.space}{source_note}",
        )
        figures.curves(
            self.config.results.plot_dir / f"certified_snr.{self.model}.png",
            self.in_sound(),
            x_label="signal-to-noise ratio above which every perturbation of the median clip is certified (dB)",
            y_label="certified accuracy, best sigma",
            title=f"{self.model}{source_note}",
        )
        print("\n".join([*notes, f"files: {self.folder}", ""]))
        return contradicted

    def certified(self) -> dict[str, Any]:
        """What two curves must share to stand in one figure, as a manifest holds it."""
        names = ("clips", "model", "defenses")
        plain: dict[str, Any] = json.loads(json.dumps({name: self.identity[name] for name in names}, default=str))
        return plain

    def in_sound(self) -> dict[str, tuple[list[float], list[float]]]:
        """Curves against dB of all that was certified for this model on these clips, whatever the representation."""
        series = {}
        for manifest in sorted(self.folder.glob(f"{self.model}.*.manifest.json")):
            space = manifest.name.removeprefix(f"{self.model}.").removesuffix(".manifest.json")
            if not self.certified().items() <= json.loads(manifest.read_text()).items():
                continue
            with (self.folder / f"{self.model}.{space}.curves.csv").open(newline="") as file:
                lines = [line for line in csv.DictReader(file) if line["SNR dB"] != "none"]
            label = space if lines else f"{space}: no meaning in the waveform"
            series[label] = ([float(line["SNR dB"]) for line in lines], [float(line["best"]) for line in lines])
        return series


def warn(model: selection.Trained, config: Config) -> None:
    """Say where the noise of the certificate is not the one of the training."""
    settings = config.certify
    trained = (model.facts.get("sigma"), model.facts.get("stage", settings.stage))
    if not trained[0] or settings.kind != "noise":
        return
    for sigma in settings.sigma:
        if (sigma, settings.stage) != trained:
            training = f"{model.name} was trained with noise of sigma {trained[0]:g} at {trained[1]}"
            print(f"warning: {training}, and is certified with {sigma:g} at {settings.stage}")
