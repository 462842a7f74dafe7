"""`SelfDistiller`: a model with exits, all trained at once by `fit`."""

import threading
import types
from collections.abc import Sequence

import keras
from keras.distillation import DistillationLoss

from keras_selfdistill import heads, recipes
from keras_selfdistill.backend.batch_norm import use_fused_kernels
from keras_selfdistill.exits.attach import ExitGraph, attach_exits
from keras_selfdistill.exits.placement import Tap
from keras_selfdistill.graph.add_classifier import with_classifier
from keras_selfdistill.graph.shells import original
from keras_selfdistill.losses.keras_distillation import pair_losses
from keras_selfdistill.training.external_teacher import check_taught, teacher_network
from keras_selfdistill.training.extra_terms import make_state
from keras_selfdistill.training.objective import check_weights
from keras_selfdistill.training.saved_wrapper import SavedWrapper
from keras_selfdistill.training.trainer import Trainer
from keras_selfdistill.utils.config import PACKAGE, check_choice, did_you_mean
from keras_selfdistill.utils.number_checks import is_positive_integer
from keras_selfdistill.utils.schedules import PerExit
from keras_selfdistill.utils.table import Table, elided


@keras.saving.register_keras_serializable(package=PACKAGE)
class SelfDistiller(SavedWrapper, Trainer):
    """Wrap a model with exits that learn from the labels and from the final exit.

    Every tapped layer gets an exit head; `fit` trains all exits with one forward pass
    per batch. Called on a batch, the wrapper returns a dict of the outputs of all
    exits in the base's own form. Layers and weights of the base are shared, not
    copied: training the wrapper trains the base. On PyTorch batch normalisation of the
    base, but for that inside layers of your own, is trained by PyTorch's own kernel
    from then on; it computes the same, faster.

    Logs: `loss`, its weighted terms (`label_loss`, `soft_target_loss`, `hint_loss`,
    `external_loss`, `distillation_loss`, if used, and the recipe's own), the metrics of
    the final exit without prefix, and those of the other exits and of the ensemble
    (mean of all logits) as `exit_1_accuracy`, …, `ensemble_accuracy`. `loss` is the sum
    of its terms and of the base's own losses, such as weight regularisation.

    Args:
        model: The base: a functional or Sequential model with one output, such as
            softmax or logits of shape `(batch, classes)`. It may have nested models.
        taps: Layer names from shallow to deep, or a number of exits, which are then
            placed at the ends of blocks at nearly equal fractions of the multiply-adds;
            `"auto"` also chooses their number. `suggest_taps` shows the choice. With 0,
            the base learns alone: from `teacher`, or by the recipe's own terms.
            A layer of a nested model is named `"backbone/stage/layer"`, the second
            call of a layer that is called several times `"layer@2"`.
        recipe: `"byot"` (the default), `"separable_byot"`, `"attention_byot"`,
            `"teskd"`, `"deep_supervision"`, `"teacher_free"`, `"past_self"`,
            `"rotation_exits"`, `"mean_teacher"`, `"mix_skd"`, `"bake"`, or a `Recipe`.
        head: `"bottleneck"`, `"separable"`, `"attention"`, `"top_down"`, `"linear"`,
            or a `Head`; by default the head of the recipe. A default bottleneck is
            narrowed if it would add more than 15 % to the base's multiply-adds (see
            `heads.Bottleneck`); other heads are not.
        teacher: Another model with the same inputs and classes, whose logits every
            exit learns from with the recipe's `external_weight`. It is frozen, called
            in inference mode, and saved with the wrapper.
        distillation_losses: Losses of `keras.distillation`, applied between each exit
            and its teachers: to features for a `FeatureDistillation`, to logits for
            others. Keras reduces them to a mean over the batch, so sample weights do
            not apply. One whose `compute_loss` has a parameter `labels` gets them.
        distillation_loss_weights: Weights of these losses, numbers or schedules, by
            default 1; or for a loss a list or dict of one for each exit with a teacher.
        gradient_equilibrium: Whether a weight of the base gets the mean of the exits'
            gradients, not their sum: it is divided by the number of exits behind the
            weight, as in arXiv 1908.06294. For SGD: optimizers that divide by the
            gradient's size, such as Adam, undo it. Heads are trained as usual.
        freeze: `"base"` to train only the exits of a trained base; batch normalisation
            of a frozen base stays in inference mode. To train all weights later, set
            `model.base.trainable = True`, then compile and fit again.
        classes: Number of classes, for a `model` that ends in features, such as a
            model of `keras.applications` with `include_top=False`. The base is then
            this model with global average pooling and a softmax layer.
        task: `"multiclass"`, `"multilabel"`, `"binary"` or `"regression"`, if the last
            layer does not imply it. Softmax and several linear units imply multiclass,
            sigmoid units multilabel or binary, a single linear unit regression. A loss
            for another task is refused for a linear last layer.
        name: Name of the wrapper.

    Raises:
        TypeError: An argument has the wrong type; subclassed models are not supported.
        ValueError: The output of the base is not supported, a tap does not exist, or a
            name is unknown. The base does not change.

    Example:
        >>> base = keras.Sequential([
        ...     keras.Input((8, 8, 1)),
        ...     keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="a"),
        ...     keras.layers.Conv2D(8, 3, strides=2, activation="relu", name="b"),
        ...     keras.layers.GlobalAveragePooling2D(),
        ...     keras.layers.Dense(3, activation="softmax"),
        ... ])
        >>> model = SelfDistiller(base, taps=["a"], recipe="byot")
        >>> model.exit_names
        ['exit_1', 'final']
        >>> model.compile("sgd", loss="sparse_categorical_crossentropy")
        >>> {name: output.shape for name, output in model.output.items()}
        {'exit_1': (None, 3), 'final': (None, 3)}
    """

    def __init__(
        self,
        model: keras.Model,
        taps: int | str | Sequence[str | Tap],
        recipe: str | recipes.Recipe = "byot",
        *,
        head: str | heads.Head | None = None,
        teacher: keras.Model | None = None,
        distillation_losses: Sequence[DistillationLoss] | None = None,
        distillation_loss_weights: Sequence[PerExit] | None = None,
        gradient_equilibrium: bool = False,
        freeze: str | None = None,
        classes: int | None = None,
        task: str | None = None,
        name: str | None = None,
    ):
        recipe = recipes.get(recipe)
        check_choice("freeze", freeze, ("base", None))
        check_choice("gradient_equilibrium", gradient_equilibrium, (True, False))
        pairs = pair_losses(distillation_losses, distillation_loss_weights)
        check_taught(taps, recipe, teacher)
        head = None if head is None else heads.get(head)
        model = model if classes is None else with_classifier(model, classes)
        graph = attach_exits(model, taps, head, recipe, task)
        check_weights(recipe, list(graph.exits), pairs)
        name = name or f"self_distilled_{model.name}"
        super().__init__(inputs=graph.inputs, outputs=graph.outputs, name=name)
        use_fused_kernels(map(original, self.layers))
        # In plain objects, so that Keras does not track layers and metrics twice.
        self._exit_graph = graph
        self._turn = threading.RLock()
        self._batch = types.SimpleNamespace(now=None)  # The one that `fit` is at.
        self._recipe = recipe
        self._head = graph.head
        self._given = types.SimpleNamespace(
            teacher=teacher,
            pair_losses=pairs,
            task=task,
            gradient_equilibrium=gradient_equilibrium,
        )
        # Tracked: layers that only training uses, which are not in the outputs' graph.
        self._adapters = graph.adapters()
        self._teacher = teacher and teacher_network(teacher, model, graph.task)
        self._recipe_state = make_state(recipe, model, graph.task.name)
        self._step = _counter("step", 0, "int32")
        self._distillation_scale = _counter("distillation_scale", 1.0, "float32")
        if freeze:
            model.trainable = False
        # Loss scaling follows the base, whatever the global policy.
        self.dtype_policy = graph.dtype_policy

    @property
    def trainable(self) -> bool:
        """Whether anything is trained; networks that only teach never are."""
        return super().trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.Model.trainable.fset(self, value)
        for network in filter(None, (self._teacher, self._recipe_state)):
            network.trainable = False

    @property
    def exit_names(self) -> list[str]:
        """Names of the exits, shallow to deep."""
        return list(self.exit_graph.exits)

    @property
    def taps(self) -> list[str]:
        """Names of the tapped layers, shallow to deep."""
        return list(self.exit_graph.taps)

    @property
    def recipe(self) -> recipes.Recipe:
        """The recipe that weighs the exits' losses."""
        return self._recipe

    @property
    def head(self) -> heads.Head:
        """The head that made the exits' features."""
        return self._head

    @property
    def distillation_losses(self) -> list[DistillationLoss]:
        """Losses of `keras.distillation` between each exit and its teachers."""
        return [pair.loss for pair in self._given.pair_losses]

    @property
    def task(self) -> str:
        """Name of the task of the base, such as `"multiclass"`."""
        return self.exit_graph.task.name

    @property
    def exit_graph(self) -> ExitGraph:
        """The base with its exits, as symbolic tensors.

        Internal: the packages above read it, and its name stays; its fields may change.
        """
        return self._exit_graph

    @property
    def base(self) -> keras.Model:
        """The model that was wrapped."""
        return self.exit_graph.base

    @property
    def has_early_exits(self) -> bool:
        """Whether there are exits that can be cut off: none whose head reads all."""
        return bool(self.taps) and not self._head.reads_whole_base

    def final_model(self) -> keras.Model:
        """Return the base, stripped of its exits: same layers, weights and cost.

        Example:
            `model.final_model().save("classifier.keras")`
        """
        base = self.exit_graph.base
        return keras.Model(self.exit_graph.inputs, base.outputs[0], name=base.name)

    def __repr__(self) -> str:
        """Return the base, the exits at their taps, and the recipe."""
        graph = self.__dict__.get("_exit_graph")
        if graph is None:  # Of a wrapper that could not be made.
            return super().__repr__()
        pairs = zip(graph.exits, graph.taps, strict=False)
        exits = elided([*(f"{name} at {tap}" for name, tap in pairs), "final"])
        recipe = type(self._recipe).__name__
        return f"<SelfDistiller of {graph.base.name}: {exits}; {recipe}>"

    def _repr_html_(self) -> str:
        graph = self.exit_graph
        rows = list(map(list, zip(graph.exits, [*graph.taps, ""], strict=True)))
        notes = [str(self._recipe), str(self._head)]
        table = Table(["exit", "tap"], rows, notes, names=2)
        return table.html(f"SelfDistiller of {graph.base.name}")

    def exit_model(self, name: str | int) -> keras.Model:
        """Return a functional model with only the layers that one exit needs.

        Args:
            name: One of `exit_names`, or its number from 1: `1` is the first exit, and
                so is `"exit_1"`, also of ten exits or more (`"exit_01"`).

        Raises:
            ValueError: No exit has this name or number, or the exits cannot be cut off.
        """
        if is_positive_integer(name) and int(name) <= len(self.exit_names):
            name = self.exit_names[int(name) - 1]
        unpadded = {f"exit_{i}": each for i, each in enumerate(self.exit_names[:-1], 1)}
        name = unpadded.get(str(name), name)
        if name == "final":
            return self.final_model()
        if name not in self.exit_graph.exits:
            raise ValueError(
                f"No exit has this name. Received: {name!r}. Expected one of "
                f"{self.exit_names}.{did_you_mean(str(name), self.exit_names)}"
            )
        if not self.has_early_exits:
            raise ValueError(
                f"No exit of this wrapper can be cut off: its head, {self._head!r}, "
                f"reads the whole base, so a model of {name!r} would cost more than "
                "the base. Deploy final_model() or ensemble_model()."
            )
        output = self.exit_graph.exits[name].output
        return self.exit_graph.model(output, name=f"{self.exit_graph.base.name}_{name}")

    def ensemble_model(self) -> keras.Model:
        """Return a functional model of the mean of the logits of all exits.

        Its output is in the base's own form: the softmax of this mean if the base ends
        in softmax. To load a saved one, `import keras_selfdistill` first, because it
        may contain a custom layer for the logits of the base.
        """
        name = f"{self.exit_graph.base.name}_ensemble"
        return self.exit_graph.model(self.exit_graph.ensemble, name=name)


def _counter(name: str, value: float, dtype: str) -> keras.Variable:
    return keras.Variable(
        keras.initializers.Constant(value),
        shape=(),
        dtype=dtype,
        trainable=False,
        aggregation="only_first_replica",
        name=name,
    )
