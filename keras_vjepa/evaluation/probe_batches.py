"""Make the batches of features or clips for the probes of an evaluation (§4.3, App. D.1)."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_vjepa.backend.distribution import ALONE, DataParallel
from keras_vjepa.data.batches.features import (
    EvaluationFeatureBatches,
    Features,
    LabelledFeatureBatches,
)
from keras_vjepa.data.batches.labelled import ClipPlaces, OrderedBatches, TrainingBatches
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.evaluation.feature_cache import Described, are_kept, cached_features
from keras_vjepa.evaluation.features import FeatureExtractor, features_in_memory
from keras_vjepa.evaluation.settings import ProbeSettings
from keras_vjepa.evaluation.task_labels import num_labels
from keras_vjepa.evaluation.views import StandingStill, evaluation_clips, training_clips
from keras_vjepa.tasks.classifier import VJEPAVideoClassifier


class ProbeBatches:
    """Makes the batches of an evaluation, and the features in them.

    Args:
        settings: settings of the evaluation, made for its encoder.
        classifier: computes the features, if the settings say that features are kept.
        cache: folder for features; None keeps them in memory.
        single_frame: whether every clip shows its first frame all the time; only if features are
            kept.
        parallel: the processes that share the work.
    """

    def __init__(
        self,
        settings: ProbeSettings,
        classifier: VJEPAVideoClassifier,
        cache: str | os.PathLike[str] | None = None,
        single_frame: bool = False,
        parallel: DataParallel = ALONE,
    ) -> None:
        for name in ("batch_size", "feature_batch_size"):
            parallel.check_batch_size(getattr(settings, name), name=name)
        if single_frame and not settings.keeps_features:
            raise ValueError("`single_frame` must be False with `augment` or `online`.")
        self.settings = settings
        self.extractor = FeatureExtractor(classifier) if settings.keeps_features else None
        self.cache = None if cache is None else Path(cache)
        self.single_frame = single_frame
        self.parallel = parallel
        # Paths of the training samples whose features are needed; None for all.
        self.used: set[str] | None = None
        self._kept: dict[bool, Features] = {}

    def training(
        self, samples: Sequence[Sample], everything: Sequence[Sample], seed: int
    ) -> TrainingBatches[Any]:
        """Make endless batches to train on.

        Args:
            samples: samples to train on.
            everything: all training samples; features are computed of those that are `used`.
            seed: seed of the order.
        """
        settings = self.settings
        if self.extractor is None:
            places = ClipPlaces(everything, settings.seed)
            return self.parallel.share(training_clips(settings, samples, places, seed))
        batches = LabelledFeatureBatches(
            samples,
            settings.batch_size,
            self.features(everything),
            num_classes=num_labels(settings.classes),
            # With several tasks, some combinations of classes may be missing.
            allow_absent_classes=True,
            seed=seed,
        )
        return self.parallel.share(batches)

    def validation(
        self, samples: Sequence[Sample], everything: Sequence[Sample]
    ) -> OrderedBatches[Any]:
        """Make batches of training samples in one view; the arguments are as in `training`."""
        if self.extractor is not None:
            return self._of_features(samples, self.features(everything))
        return self._of_clips(samples, 1, ClipPlaces(everything, self.settings.seed))

    def test(self, samples: Sequence[Sample]) -> OrderedBatches[Any]:
        """Make batches of test samples in all their views."""
        if self.extractor is not None:
            return self._of_features(samples, self.features(samples, is_test=True))
        return self._of_clips(samples, self.settings.classifier.num_views)

    def _of_features(
        self, samples: Sequence[Sample], features: Features
    ) -> EvaluationFeatureBatches:
        batches = EvaluationFeatureBatches(
            samples,
            self.settings.batch_size,
            features,
            num_classes=num_labels(self.settings.classes),
            skip_unreadable=self.settings.skip_unreadable,
        )
        return self.parallel.share(batches)

    def _of_clips(
        self, samples: Sequence[Sample], num_views: int, places: ClipPlaces | None = None
    ) -> OrderedBatches[Any]:
        # Each device gets the same number of rows, and a batch has few more rows than samples.
        devices = self.parallel.device_count
        size = min(self.settings.batch_size, -(-len(samples) // devices) * devices)
        batches = evaluation_clips(self.settings, samples, num_views, size, places)
        return self.parallel.share(batches)

    # --- Features --------------------------------------------------------------------------------

    def features(self, samples: Sequence[Sample], is_test: bool = False) -> Features:
        """Return the features of samples, and compute those not in memory or on disk.

        Args:
            samples: all training samples, of which those that are not `used` are left out, unless
                they are on disk already; or all test samples.
            is_test: whether the samples are test samples, which are seen in all views.
        """
        enough = [[*samples]]
        if not is_test and self.used is not None:
            enough.append([sample for sample in samples if sample.path in self.used])
        known = self._kept.get(is_test)
        if known is None or [*known.samples] not in enough:
            if len(enough) > 1 and self._are_on_disk(samples):
                enough.pop()
            self._kept[is_test] = self._found_or_computed(enough[-1], is_test)
        return self._kept[is_test]

    def _found_or_computed(self, samples: Sequence[Sample], is_test: bool) -> Features:
        described = self._described(samples, is_test)
        if self.cache is None:
            return features_in_memory(described.extractor, described.batches)
        return cached_features(self.cache, "test" if is_test else "train", *described)

    def _are_on_disk(self, samples: Sequence[Sample]) -> bool:
        """Tell whether the features of all training samples were computed before."""
        if self.cache is None:
            return False
        return are_kept(self.cache, "train", self._described(samples, is_test=False))

    def _described(self, samples: Sequence[Sample], is_test: bool) -> Described:
        """Say which features of samples are wanted, of all views or of one."""
        assert self.extractor is not None, "asked for features that are not kept"
        settings = self.settings
        num_views = settings.classifier.num_views if is_test else 1
        batches = evaluation_clips(settings, samples, num_views, settings.feature_batch_size)
        if self.single_frame:
            batches.transform = StandingStill(batches.transform)
        description, dtype = self._description(num_views), settings.feature_dtype
        return Described(self.extractor, self.parallel.share(batches), description, dtype)

    def _description(self, num_views: int) -> dict[str, Any]:
        """Describe what features depend on beside encoder, samples and clips.

        The names are those that the first version used, so that its caches are found again.
        """
        settings = self.settings
        short_side, size = settings.view.short_side, settings.image_size
        largest = size if size is None or isinstance(size, int) else max(size)
        words = {None: "256/224", largest: "crop"}
        description = {
            "image_size": size,
            "num_views": num_views,
            "images": settings.images,
            "short_side": words.get(short_side, short_side),
            "single_frame": self.single_frame,
        }
        for name in ("antialias", "interpolation", "crop_rounding", "mean", "std"):
            value = getattr(settings.view, name)
            if value != settings.view.default(name):
                description[name] = value
        if settings.classifier.max_frames is not None:
            description["max_frames"] = settings.classifier.max_frames
        return description
