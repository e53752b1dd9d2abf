"""Protocols: which attacks are run on a sample, and when they stop. The worst answer counts."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal

import torch
from torch import Tensor

from advflyp.attack.apgd import APGD
from advflyp.attack.base import SingleAttack
from advflyp.attack.elsewhere import Surrogate
from advflyp.attack.encoder import EncoderPGD
from advflyp.attack.pgd import PGD
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.config import suggest
from advflyp.lvlm.attack import perturb
from advflyp.lvlm.metrics import answer_in, caption_in
from advflyp.lvlm.model import LVLM
from advflyp.lvlm.tasks import Metric, Sample, Task
from advflyp.model.precision import Resolved
from advflyp.seeds import derive_seed

REFERENCES = 5
READ: Mapping[Metric, Callable[[str], str]] = {"cider": caption_in, "vqa": answer_in, "yes-no": str}


@dataclass(frozen=True)
class Round:
    """One run of the attack on the samples that are still attacked.

    Attributes:
        answer: The number of the reference to make unlikely; "best", the reference that gave the worst answer so far,
            starting from that answer's image; or "target", to make the string `target` likely.
        precision: Precision of the search; answers are always generated in float32.
        target: The string of a targeted attack.
    """

    answer: int | Literal["best", "target"]
    precision: Resolved = "fp32"
    target: str = ""


@dataclass(frozen=True)
class LVLMProtocol:
    """The attacks that are run on each sample.

    Attributes:
        name: Its name in results.
        attack: The attack of every round.
        rounds: Metric → rounds; tasks whose metric has none are not attacked.
        leaves: Task → the score below which a sample is not attacked any further.
        limit: Number of samples, drawn with `seed`.
        random_start: Whether attacks start at a random point of the ball instead of at the image.
        of_tower: Whether the search attacks the tower's own CLIP instead of the answers, pushing each image towards
            other samples' captions.
    """

    name: str
    attack: SingleAttack
    rounds: Mapping[Metric, tuple[Round, ...]]
    leaves: Mapping[str, float] = field(default_factory=dict)
    limit: int = 500
    seed: int = 42
    random_start: bool = True
    of_tower: bool = False

    def check(self, model: LVLM, tasks: Sequence[Task]) -> None:
        """ValueError if it cannot be run on this model and all of these tasks."""
        if self.of_tower:
            model.known_clip()
            for task in tasks:
                captions_of(task)


_ONCE: Mapping[Metric, tuple[Round, ...]] = {
    "cider": (Round(0),),
    "vqa": (Round(0),),
    "yes-no": (Round(0),),
}
_EACH = tuple(Round(number, "bf16") for number in range(REFERENCES))
# The protocol of RobustVLM (Schlarmann et al. 2024); an accuracy below 0.5 % is 0.
ROBUSTVLM = LVLMProtocol(
    name="robustvlm",
    attack=APGD(loss="dlr", steps=100, first_step=1.0),
    random_start=False,
    rounds={
        "cider": (*_EACH, Round("best")),
        "vqa": (*_EACH, Round("best"), *(Round("target", target=word) for word in ("maybe", "Word"))),
    },
    leaves={"coco": 10.0, "flickr30k": 2.0, "vqav2": 0.5, "textvqa": 0.5, "vizwiz": 0.5},
)
# The search does not use the language model.
ENCODER = LVLMProtocol(name="encoder", attack=PGD(loss="ce", steps=100), rounds=_ONCE, of_tower=True)
PROTOCOLS = {one.name: one for one in (ROBUSTVLM, ENCODER)}
# What comes before the number of steps in the name of a single attack.
ATTACKS: Mapping[str, Callable[..., SingleAttack]] = {
    "apgd": partial(APGD, loss="dlr"),
    "pgd": partial(PGD, loss="margin"),
    "encoder": EncoderPGD,
    "encoder-patches": partial(EncoderPGD, tokens="patches"),
    "encoder-both": partial(EncoderPGD, tokens="both"),
}


def find_protocol(name: str) -> LVLMProtocol:
    """A protocol by name, or one attack on the first reference ("apgdN", "pgdN") or the tower ("encoder-patchesN", …).

    Raises:
        ValueError: There is no such protocol or attack.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    found = re.fullmatch(r"([a-z-]+?)-?([1-9]\d{0,5})", name.lower())
    if found is None or found[1] not in ATTACKS:
        known = [*PROTOCOLS, "apgd100", "pgd100", "encoder-patches100"]
        raise ValueError(f"there is no attack '{name}' on answers{suggest(name, known)}")
    return LVLMProtocol(name=name, attack=ATTACKS[found[1]](steps=int(found[2])), rounds=_ONCE)


def captions_of(task: Task) -> list[str]:
    """The first caption of each sample, or its question followed by its most frequent answer.

    Raises:
        ValueError: They are all the same.
    """
    if task.metric == "cider":
        found = [sample.references[0] for sample in task.samples]
    else:
        questions = [sample.prompt.partition("\n")[0] for sample in task.samples]
        found = [
            f"{question} {sample.frequent(1)[0]}"
            for question, sample in zip(questions, task.samples, strict=True)
        ]
    if len(set(found)) < 2:
        raise ValueError(
            f"--attack encoder needs at least two different captions; the samples of {task.name} share one: raise "
            "--limit"
        )
    return found


@dataclass
class Outcome:
    """The outcome for N samples.

    Attributes:
        clean: N answers to the clean images.
        clean_scores: (N,) float64, the scores of the clean answers.
        answers: N worst answers.
        scores: (N,) float64, the scores of the worst answers.
        images: (N, 3, H, W), the images that gave the worst answers.
        rounds: (N,) int64, the number of rounds run on each sample.
    """

    clean: list[str]
    clean_scores: Tensor
    answers: list[str]
    scores: Tensor
    images: Tensor
    rounds: Tensor


@dataclass(frozen=True)
class Runner:
    """A protocol on one model and task at one radius.

    Attributes:
        score: (a sample's place in the task, answer) → its score in per cent.
    """

    model: LVLM
    task: Task
    protocol: LVLMProtocol
    threat: Threat | None
    score: Callable[[int, str], float]
    seed: int = 0

    def run(self, places: Sequence[int], images: Tensor) -> Outcome:
        """Attack the samples at `places` (N) of the task, whose clean images are (N, 3, H, W)."""
        samples = [self.task.samples[place] for place in places]
        clean = self._answers(images, samples)
        scores = self._scores(places, clean)
        found = Outcome(
            clean,
            scores,
            list(clean),
            scores.clone(),
            images.clone(),
            torch.zeros(len(places), dtype=torch.long),
        )
        if self.threat is None:
            return found
        best = [0] * len(places)
        least = self.protocol.leaves.get(self.task.name, -1.0)
        for number, one in enumerate(self.protocol.rounds.get(self.task.metric, ())):
            targets = {
                row: target
                for row, sample in enumerate(samples)
                if found.scores[row] >= least and (target := self._target(one, sample, best[row])) is not None
            }
            if targets:
                self._round(number, one, targets, places, images, found, best)
        return found

    def _round(
        self,
        number: int,
        one: Round,
        targets: Mapping[int, str],
        places: Sequence[int],
        images: Tensor,
        found: Outcome,
        best: list[int],
    ) -> None:
        """Run one attack on the rows with `targets`, and record in `found` the answers that are the worst so far."""
        assert self.threat is not None
        rows = list(targets)
        there = torch.tensor(rows, device=images.device)
        samples = [self.task.samples[places[row]] for row in rows]
        index, seed = torch.tensor([places[row] for row in rows]), derive_seed(self.seed, number)
        if self.protocol.of_tower:
            attacked = self._away_from_captions(images[there], index, seed)
        else:
            with self.model.computing_in(one.precision):
                attacked = perturb(
                    self.model,
                    self.protocol.attack,
                    images[there],
                    [sample.prompt for sample in samples],
                    list(targets.values()),
                    self.threat,
                    seed=seed,
                    index=index,
                    targeted=one.answer == "target",
                    start=self._start(one, images, found.images, there),
                )
        if not bool(self.threat.contains(images[there], attacked).all()):
            raise AssertionError("the attack left its ball")
        answers = self._answers(attacked, samples)
        scores = self._scores([places[row] for row in rows], answers)
        for i, row in enumerate(rows):
            found.rounds[row] += 1
            if scores[i] < found.scores[row]:
                found.scores[row], found.answers[row], found.images[row] = scores[i], answers[i], attacked[i]
                best[row] = one.answer if isinstance(one.answer, int) else best[row]

    def _away_from_captions(self, images: Tensor, index: Tensor, seed: int) -> Tensor:
        """Images (N, 3, H, W) pushed towards other samples' captions in the tower's CLIP; `index`: (N,) places."""
        assert self.threat is not None
        classifier, labels = self._captions
        streams, own = Streams(seed, index.to(images.device)), labels[index].to(images.device)
        return self.protocol.attack.perturb(Surrogate(classifier), images, own, self.threat, streams=streams)

    @cached_property
    def _captions(self) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """The classifier over the distinct captions of all samples, and (N,) each sample's class."""
        texts = captions_of(self.task)
        known = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        return self.model.caption_classifier(list(known)), torch.tensor([known[text] for text in texts])

    def _start(self, one: Round, images: Tensor, worst: Tensor, there: Tensor) -> Tensor | None:
        if one.answer == "best":
            return worst[there]
        return None if self.protocol.random_start else images[there]

    def _wanted(self, sample: Sample) -> list[str]:
        """The references that attacks use: captions in their order, answers by decreasing frequency."""
        if self.task.metric == "cider":
            return [text for text in sample.references if text.strip()][:REFERENCES]
        return [text for text in sample.frequent(len(sample.references)) if text.strip()][:REFERENCES]

    def _target(self, one: Round, sample: Sample, best: int) -> str | None:
        """What the attack makes unlikely, or likely; None if the sample has too few references for this round."""
        if one.answer == "target":
            return one.target
        number, wanted = best if one.answer == "best" else one.answer, self._wanted(sample)
        return wanted[number] if number < len(wanted) else None

    def _answers(self, images: Tensor, samples: Sequence[Sample]) -> list[str]:
        prompts = [sample.prompt for sample in samples]
        answers = self.model.answer(images, prompts, max_new_tokens=self.task.longest)
        return [READ[self.task.metric](answer) for answer in answers]

    def _scores(self, places: Sequence[int], answers: Sequence[str]) -> Tensor:
        pairs = zip(places, answers, strict=True)
        return torch.tensor([self.score(place, answer) for place, answer in pairs], dtype=torch.float64)
