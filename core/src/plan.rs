//! Planning: where every tensor of a pass lies, and how much memory that takes.
//!
//! A plan is arithmetic on shapes. It is `const` for the reference backend, so the memory of a
//! model is a constant of the program; another backend plans through its own [`Needs`] with the
//! same walks.
//!
//! * [`Eval`] keeps two activations: the one read lies at one end of the region, the one written
//!   at the other, and layers that work in place stay where they are.
//! * [`Train`] keeps what backward reads from the bottom up, then a region in which gradients
//!   alternate between the two ends.
//! * [`Params`] lays out trained parameters, measured ones, gradients and optimiser state.

use crate::arena::{Dtype, Layout, Slot, Word};
use crate::layer::{Layer, Needs, Pass, Role, Tensors};
use crate::shape::Shape;

/// Why there is no plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanError {
    /// A layer cannot take the shape that reaches it.
    Shape {
        /// The layer, counted from the first of the chain.
        layer: usize,
        /// What reaches it.
        input: Shape,
    },
    /// A size does not fit the address space, a tensor has 2^32 elements or more, or scratch takes
    /// 4 GiB or more.
    Overflow {
        /// The layer, counted from the first of the chain.
        layer: usize,
    },
    /// Blocks or stages that do not lie within the layers.
    Range {
        /// The first layer.
        first: usize,
        /// One past the last.
        last: usize,
        /// How many layers there are.
        layers: usize,
    },
    /// A batch or chunk of a size that cannot be used.
    Batch {
        /// The size.
        size: u32,
    },
    /// A layer that the backend for small cores has no kernel for.
    Kernel {
        /// The layer.
        layer: usize,
    },
    /// More batches in flight than 2, or none.
    Queue {
        /// How many.
        batches: u32,
    },
}

impl core::fmt::Display for PlanError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::Shape { layer, input } => write!(f, "layer {layer} cannot take {input}"),
            Self::Overflow { layer } => write!(f, "layer {layer} is too large to plan"),
            Self::Range { first, last, layers } => {
                write!(f, "layers {first}..{last} of a net of {layers}")
            }
            Self::Batch { size } => write!(f, "a batch of {size} samples"),
            Self::Kernel { layer } => write!(f, "layer {layer} has no kernel for small cores"),
            Self::Queue { batches } => write!(f, "{batches} batches in flight, expected 1 or 2"),
        }
    }
}

impl core::error::Error for PlanError {}

/// Layers in a row: some of a net's, then those of a head that is discarded after training.
#[derive(Clone, Copy, Debug)]
pub struct Chain<'m> {
    /// The net's.
    pub body: &'m [Layer],
    /// The head's, or a readout's.
    pub head: &'m [Layer],
    /// Whether what the body gives is kept until the batch is done: other layers read it, so no
    /// layer of the head may overwrite it.
    pub keep: bool,
}

impl<'m> Chain<'m> {
    /// Only layers of a net.
    pub const fn new(body: &'m [Layer]) -> Self {
        Self { body, head: &[], keep: false }
    }

    /// How many layers give what is kept; none where nothing is.
    pub(crate) const fn kept(&self) -> usize {
        if self.keep { self.body.len() } else { 0 }
    }

    /// How many layers.
    pub const fn len(&self) -> usize {
        self.body.len() + self.head.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Layer `at`.
    pub const fn get(&self, at: usize) -> Option<&'m Layer> {
        if at < self.body.len() {
            Some(&self.body[at])
        } else if at - self.body.len() < self.head.len() {
            Some(&self.head[at - self.body.len()])
        } else {
            None
        }
    }

    /// The shape that reaches layer `at`.
    ///
    /// # Errors
    /// The first layer that cannot take its input.
    pub const fn shape(&self, input: Shape, at: usize) -> Result<Shape, PlanError> {
        let mut shape = input;
        let mut i = 0;
        while i < at {
            match self.get(i) {
                Some(layer) => match layer.output(shape) {
                    Some(out) => shape = out,
                    None => return Err(PlanError::Shape { layer: i, input: shape }),
                },
                None => return Err(PlanError::Range { first: 0, last: at, layers: self.len() }),
            }
            i += 1;
        }
        Ok(shape)
    }
}

/// Where one layer works. Slots that it does not have are empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The input.
    pub x: Slot,
    /// The output; at the input's place where the layer works in place.
    pub y: Slot,
    /// Kept for backward.
    pub saved: Slot,
    /// Scratch of the forward call, as bytes.
    pub scratch: Slot,
    /// Scratch of the backward call, as bytes.
    pub backward_scratch: Slot,
    /// The output's gradient; empty in a plan for evaluation.
    pub dy: Slot,
    /// The input's gradient; empty where nobody wants it.
    pub dx: Slot,
}

const fn add(a: usize, b: usize, layer: usize) -> Result<usize, PlanError> {
    match a.checked_add(b) {
        Some(sum) => Ok(sum),
        None => Err(PlanError::Overflow { layer }),
    }
}

const fn max(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

/// `a?` for `const fn`.
macro_rules! tri {
    ($e:expr) => {
        match $e {
            Ok(value) => value,
            Err(error) => return Err(error),
        }
    };
}
pub(crate) use tri;

/// Bytes of a tensor, rounded up to whole words.
const fn room(
    shape: Shape,
    layout: Layout,
    dtype: Dtype,
    layer: usize,
) -> Result<usize, PlanError> {
    match layout.elements(shape) {
        Some(elements) => match (elements as usize).checked_mul(dtype.size()) {
            Some(bytes) if bytes < usize::MAX - Word::BYTES => Ok(Word::round_up(bytes)),
            _ => Err(PlanError::Overflow { layer }),
        },
        None => Err(PlanError::Overflow { layer }),
    }
}

/// The first byte past a slot, rounded up to whole words.
pub(crate) const fn past(slot: Slot) -> Result<usize, PlanError> {
    add(slot.at, tri!(room(slot.shape, slot.layout, slot.dtype, 0)), 0)
}

/// The largest scratch: its bytes are elements of one slot.
const SCRATCH: usize = u32::MAX as usize / Word::BYTES * Word::BYTES;

/// Bytes of scratch, rounded up to whole words.
const fn scratch_room(bytes: usize, layer: usize) -> Result<usize, PlanError> {
    if bytes > SCRATCH { Err(PlanError::Overflow { layer }) } else { Ok(Word::round_up(bytes)) }
}

/// A slot of bytes: of whole words, and never more than was granted to one layer.
const fn bytes_slot(at: usize, bytes: usize) -> Slot {
    let words = if bytes > SCRATCH { SCRATCH } else { bytes } / Word::BYTES;
    Slot::new(at, Shape::new(words as u32, Word::BYTES as u32, 1, 1), Dtype::U8)
}

/// The state of a walk over the layers of a plan.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    layer: usize,
    x: Slot,
    /// The tensor lies at the top end of its region.
    top: bool,
}

/// A pass that keeps nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eval {
    at: usize,
    bytes: usize,
    input: Slot,
}

impl Eval {
    /// Begins a plan for inputs of shape `input` that lie in `layout`, in a region from byte `at`
    /// on.
    ///
    /// # Errors
    /// An input of 2^32 elements or more.
    pub const fn new(at: usize, input: Shape, layout: Layout) -> Result<Self, PlanError> {
        Self::of(at, Slot { at, shape: input, dtype: Dtype::F32, layout })
    }

    /// As [`new`](Self::new), for inputs that lie as `input` does, wherever that is.
    ///
    /// # Errors
    /// As `new`.
    pub const fn of(at: usize, input: Slot) -> Result<Self, PlanError> {
        let bytes = tri!(room(input.shape, input.layout, input.dtype, 0));
        tri!(add(at, bytes, 0));
        Ok(Self { at, bytes, input: Slot { at, ..input } })
    }

    /// The plan of a chain on the reference backend.
    ///
    /// # Errors
    /// A layer that cannot take its input, or sizes past the address space.
    pub const fn reference(
        at: usize,
        chain: Chain<'_>,
        input: Shape,
        pass: Pass,
    ) -> Result<Self, PlanError> {
        let mut plan = tri!(Self::new(at, input, Layout::Nchw));
        let mut shape = input;
        let mut i = 0;
        while i < chain.len() {
            let Some(layer) = chain.get(i) else { break };
            let Some(needs) = layer.needs(shape, pass) else {
                return Err(PlanError::Shape { layer: i, input: shape });
            };
            plan = tri!(plan.push(i, shape, Layout::Nchw, Dtype::F32, needs));
            shape = needs.out;
            i += 1;
        }
        Ok(plan)
    }

    /// Makes room for one more layer, whose input is `x`.
    ///
    /// # Errors
    /// Sizes past the address space.
    pub const fn push(
        self,
        layer: usize,
        x: Shape,
        layout: Layout,
        dtype: Dtype,
        needs: Needs,
    ) -> Result<Self, PlanError> {
        let mut bytes = tri!(room(x, layout, dtype, layer));
        if !needs.in_place {
            bytes =
                tri!(add(bytes, tri!(room(needs.out, needs.layout, needs.dtype, layer)), layer));
        }
        bytes = tri!(add(bytes, tri!(saved_room(needs, layer)), layer));
        bytes = tri!(add(bytes, tri!(scratch_room(needs.forward_scratch, layer)), layer));
        tri!(add(self.at, bytes, layer));
        Ok(Self { bytes: max(self.bytes, bytes), ..self })
    }

    /// Makes room for a tensor that lies at the region's start while the input is written, such
    /// as the raw bytes that the input is widened from.
    ///
    /// # Errors
    /// Sizes past the address space.
    pub const fn before(self, raw: usize) -> Result<Self, PlanError> {
        let bytes = tri!(add(Word::round_up(raw), self.input_bytes(), 0));
        tri!(add(self.at, bytes, 0));
        Ok(Self { bytes: max(self.bytes, bytes), ..self })
    }

    const fn input_bytes(self) -> usize {
        Word::round_up(self.input.bytes())
    }

    /// The region's size in bytes: exact.
    pub const fn bytes(self) -> usize {
        self.bytes
    }

    /// One past the region's last byte.
    pub(crate) const fn past(self) -> usize {
        self.at + self.bytes
    }

    /// Where the input is to be written: at the region's end, so that raw samples can lie at its
    /// start.
    pub const fn input(self) -> Slot {
        Slot { at: self.at + self.bytes - self.input_bytes(), ..self.input }
    }

    /// Begins to walk over the layers, `n` samples of the planned batch at a time.
    pub const fn walk(self, n: u32) -> EvalWalk {
        let cursor = Cursor { layer: 0, x: self.input().head(n), top: true };
        EvalWalk { plan: self, cursor }
    }
}

const fn saved_room(needs: Needs, layer: usize) -> Result<usize, PlanError> {
    room(Shape::rows(1, needs.saved.0), Layout::Nchw, needs.saved.1, layer)
}

/// A walk over an [`Eval`] plan.
#[derive(Clone, Copy, Debug)]
pub struct EvalWalk {
    plan: Eval,
    cursor: Cursor,
}

impl EvalWalk {
    /// The tensor that the walk has reached.
    pub const fn x(&self) -> Slot {
        self.cursor.x
    }

    /// Where the next layer works; moves on to its output.
    pub const fn step(&mut self, needs: Needs) -> Place {
        let Cursor { x, top, layer } = self.cursor;
        let (start, past) = (self.plan.at, self.plan.at + self.plan.bytes);
        let x_bytes = Word::round_up(x.bytes());
        let mut y = Slot { at: x.at, shape: needs.out, dtype: needs.dtype, layout: needs.layout };
        let y_bytes = Word::round_up(y.bytes());
        // Saved values and scratch lie between the two ends.
        let free;
        if needs.in_place {
            free = if top { start } else { start + x_bytes };
        } else if top {
            y.at = start;
            free = start + y_bytes;
        } else {
            y.at = past - y_bytes;
            free = start + x_bytes;
        }
        let saved = Slot::vector(free, needs.saved.0, needs.saved.1);
        let scratch_at = free + Word::round_up(saved.bytes());
        self.cursor = Cursor { layer: layer + 1, x: y, top: top == needs.in_place };
        Place {
            x,
            y,
            saved,
            scratch: bytes_slot(scratch_at, Word::round_up(needs.forward_scratch)),
            backward_scratch: Slot::EMPTY,
            dy: Slot::EMPTY,
            dx: Slot::EMPTY,
        }
    }
}

/// A pass that keeps what backward reads, and the gradients of that backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Train {
    at: usize,
    kept: usize,
    gradients: usize,
    output: Shape,
    layout: Layout,
    /// The last layer pushed keeps its output.
    keeps: bool,
    /// After how many layers it does so whatever it needs itself.
    kept_after: usize,
    layers: usize,
}

impl Train {
    /// Begins a plan for a batch that lies at `input`, elsewhere, in a region from byte `at`.
    pub const fn new(at: usize, input: Slot) -> Self {
        Self::keeping(at, input, 0)
    }

    /// As [`new`](Self::new); the output of the first `layers` layers stays to the end, where there
    /// are any.
    pub const fn keeping(at: usize, input: Slot, layers: usize) -> Self {
        Self {
            at,
            kept_after: layers,
            kept: 0,
            gradients: 0,
            output: input.shape,
            layout: input.layout,
            keeps: false,
            layers: 0,
        }
    }

    /// The plan of a chain on the reference backend, with `loss_scratch` bytes for the objective.
    ///
    /// # Errors
    /// A layer that cannot take its input, or sizes past the address space.
    pub const fn reference(
        at: usize,
        chain: Chain<'_>,
        input: Shape,
        loss_scratch: usize,
    ) -> Result<Self, PlanError> {
        let mut plan = Self::keeping(at, Slot::new(at, input, Dtype::F32), chain.kept());
        let mut i = 0;
        while i < chain.len() {
            let Some(layer) = chain.get(i) else { break };
            let Some(needs) = layer.needs(plan.output, Pass::Train) else {
                return Err(PlanError::Shape { layer: i, input: plan.output });
            };
            plan = tri!(plan.push(needs));
            i += 1;
        }
        plan.finish(loss_scratch)
    }

    /// Whether the next layer may overwrite its input.
    const fn in_place(self, needs: Needs) -> bool {
        needs.view || (needs.in_place && !self.keeps)
    }

    /// Makes room for one more layer.
    ///
    /// # Errors
    /// Sizes past the address space.
    pub const fn push(self, needs: Needs) -> Result<Self, PlanError> {
        let layer = self.layers;
        let y = tri!(room(needs.out, needs.layout, needs.dtype, layer));
        let saved = tri!(saved_room(needs, layer));
        let kept = if self.in_place(needs) { 0 } else { y };
        let kept = tri!(add(self.kept, tri!(add(kept, saved, layer)), layer));
        let dy = tri!(room(needs.out, needs.layout, Dtype::F32, layer));
        let dx = if layer == 0 || needs.gradient_in_place {
            0
        } else {
            tri!(room(self.output, self.layout, Dtype::F32, layer))
        };
        let backward = tri!(add(dy, dx, layer));
        let backward =
            tri!(add(backward, tri!(scratch_room(needs.backward_scratch, layer)), layer));
        let forward = tri!(scratch_room(needs.forward_scratch, layer));
        let gradients = max(self.gradients, max(backward, forward));
        let keeps = if needs.view { self.keeps } else { needs.keeps_output };
        let keeps = keeps || layer + 1 == self.kept_after;
        Ok(Self {
            kept,
            gradients,
            output: needs.out,
            layout: needs.layout,
            keeps,
            layers: layer + 1,
            ..self
        })
    }

    /// Makes room for the objective: the output's gradient and `scratch` bytes.
    ///
    /// # Errors
    /// Sizes past the address space.
    pub const fn finish(self, scratch: usize) -> Result<Self, PlanError> {
        let dy = tri!(room(self.output, self.layout, Dtype::F32, self.layers));
        let objective = tri!(add(dy, tri!(scratch_room(scratch, self.layers)), self.layers));
        let plan = Self { gradients: max(self.gradients, objective), ..self };
        tri!(add(plan.at, tri!(add(plan.kept, plan.gradients, self.layers)), self.layers));
        Ok(plan)
    }

    /// The region's size in bytes: exact.
    pub const fn bytes(self) -> usize {
        self.kept + self.gradients
    }

    /// Begins to walk over the layers with the input at `x`.
    pub const fn walk(self, x: Slot) -> TrainWalk {
        let start = Self::keeping(self.at, x, self.kept_after);
        TrainWalk { plan: self, done: start, cursor: Cursor { layer: 0, x, top: false } }
    }
}

/// A walk over a [`Train`] plan.
#[derive(Clone, Copy, Debug)]
pub struct TrainWalk {
    plan: Train,
    done: Train,
    cursor: Cursor,
}

impl TrainWalk {
    /// The tensor that the walk has reached.
    pub const fn x(&self) -> Slot {
        self.cursor.x
    }

    /// The gradient of the tensor that the walk has reached.
    pub const fn dx(&self) -> Slot {
        self.gradient(self.cursor.x, self.cursor.top)
    }

    /// Scratch for the objective, beside the gradient of the tensor that the walk has reached.
    pub const fn objective_scratch(&self) -> Slot {
        let used = Word::round_up(self.dx().bytes());
        let start = self.plan.at + self.plan.kept;
        let at = if self.cursor.top { start } else { start + used };
        bytes_slot(at, self.plan.gradients - used)
    }

    const fn gradient(&self, of: Slot, top: bool) -> Slot {
        let start = self.plan.at + self.plan.kept;
        let gradient = Slot { at: start, dtype: Dtype::F32, ..of };
        if top {
            let bytes = Word::round_up(gradient.bytes());
            Slot { at: start + self.plan.gradients - bytes, ..gradient }
        } else {
            gradient
        }
    }

    /// Where the next layer works; moves on to its output.
    ///
    /// # Errors
    /// None for the needs that the plan was made of.
    pub const fn step(&mut self, needs: Needs) -> Result<Place, PlanError> {
        let Cursor { x, top, layer } = self.cursor;
        let mut free = self.plan.at + self.done.kept;
        let mut y = Slot { at: x.at, shape: needs.out, dtype: needs.dtype, layout: needs.layout };
        if !self.done.in_place(needs) {
            y.at = free;
            free += Word::round_up(y.bytes());
        }
        let saved = Slot::vector(free, needs.saved.0, needs.saved.1);
        let y_top = top == needs.gradient_in_place;
        let dy = self.gradient(y, y_top);
        let wanted = if layer == 0 { Slot::EMPTY } else { self.gradient(x, top) };
        // The two gradients lie at the two ends; scratch follows the lower one.
        let start = self.plan.at + self.plan.kept;
        let low = if !y_top {
            dy
        } else if needs.gradient_in_place {
            Slot::EMPTY
        } else {
            wanted
        };
        let scratch_at = start + Word::round_up(low.bytes());
        self.done = tri!(self.done.push(needs));
        self.cursor = Cursor { layer: layer + 1, x: y, top: y_top };
        Ok(Place {
            x,
            y,
            saved,
            scratch: bytes_slot(start, Word::round_up(needs.forward_scratch)),
            backward_scratch: bytes_slot(scratch_at, Word::round_up(needs.backward_scratch)),
            dy,
            dx: wanted,
        })
    }
}

/// Where the parameters of a stage lie: trained ones together, so that the optimiser updates
/// them in one call; then the measured ones; gradients and optimiser state like the trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Params {
    at: usize,
    trained: usize,
    measured: usize,
    slots: usize,
    /// Bytes of trained and of measured parameters before those that a walk begins at.
    skipped: (usize, usize),
}

impl Params {
    /// The plan for the parameters of a chain from byte `at` on, with `slots` state vectors of
    /// the optimiser.
    ///
    /// # Errors
    /// A layer that cannot take its input, or sizes past the address space.
    pub const fn new(
        at: usize,
        chain: Chain<'_>,
        input: Shape,
        slots: usize,
    ) -> Result<Self, PlanError> {
        Self::empty(at, slots).and(chain, input)
    }

    /// The plan for no parameters, to which chains are added.
    pub const fn empty(at: usize, slots: usize) -> Self {
        Self { at, trained: 0, measured: 0, slots, skipped: (0, 0) }
    }

    /// Makes room for the parameters of one more chain, behind those that there are.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub const fn and(self, chain: Chain<'_>, input: Shape) -> Result<Self, PlanError> {
        let mut plan = self;
        let mut shape = input;
        let mut i = 0;
        while i < chain.len() {
            let Some(layer) = chain.get(i) else { break };
            let (Some(tensors), Some(out)) = (layer.tensors(shape), layer.output(shape)) else {
                return Err(PlanError::Shape { layer: i, input: shape });
            };
            plan = tri!(plan.push(tensors, i));
            shape = out;
            i += 1;
        }
        let vectors = match plan.slots.checked_add(2) {
            Some(vectors) => vectors,
            None => return Err(PlanError::Overflow { layer: i }),
        };
        match plan.trained.checked_mul(vectors) {
            Some(bytes) => {
                tri!(add(plan.at, tri!(add(bytes, plan.measured, i)), i));
                Ok(plan)
            }
            None => Err(PlanError::Overflow { layer: i }),
        }
    }

    /// The same parameters, for a walk over the chain behind all those of `before`, which is a
    /// plan of the first of them.
    pub const fn behind(self, before: Self) -> Self {
        Self { skipped: (before.trained, before.measured), ..self }
    }

    const fn push(self, tensors: Tensors, layer: usize) -> Result<Self, PlanError> {
        let mut plan = self;
        let mut i = 0;
        while i < Role::ALL.len() {
            let role = Role::ALL[i];
            let len = tensors.len(role);
            let bytes = tri!(room(Shape::rows(1, len), Layout::Nchw, Dtype::F32, layer));
            if role.is_trained() {
                plan.trained = tri!(add(plan.trained, bytes, layer));
            } else {
                plan.measured = tri!(add(plan.measured, bytes, layer));
            }
            i += 1;
        }
        // All of a kind are one slot for the optimiser, and for who saves them.
        let most = u32::MAX as usize;
        if max(plan.trained, plan.measured) / Dtype::F32.size() > most {
            return Err(PlanError::Overflow { layer });
        }
        Ok(plan)
    }

    /// Bytes of parameters, gradients and optimiser state together: exact.
    pub const fn bytes(self) -> usize {
        self.trained * (2 + self.slots) + self.measured
    }

    const fn vector(self, index: usize) -> Slot {
        let at = self.at + self.trained * index;
        let elements = self.trained / Dtype::F32.size();
        Slot::vector(at, elements as u32, Dtype::F32)
    }

    /// All trained parameters, padding included (which is zero and stays zero).
    pub const fn trained(self) -> Slot {
        self.vector(0)
    }

    /// Their gradients.
    pub const fn gradients(self) -> Slot {
        self.vector(1)
    }

    /// State vector `index` of the optimiser; empty where it has fewer.
    pub const fn state(self, index: usize) -> Slot {
        if index < self.slots { self.vector(2 + index) } else { Slot::EMPTY }
    }

    /// All measured parameters, padding included.
    pub const fn measured(self) -> Slot {
        let at = self.at + self.trained * (2 + self.slots);
        Slot::vector(at, (self.measured / Dtype::F32.size()) as u32, Dtype::F32)
    }

    /// Begins to walk over the layers.
    pub const fn walk(self) -> ParamsWalk {
        let (trained, measured) = self.skipped;
        ParamsWalk { plan: self, done: Self { trained, measured, ..Self::empty(0, 0) } }
    }
}

/// The parameters of one layer in the arena. Slots that it does not have are empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamSlots {
    /// Weights, or the scale of a normalisation.
    pub weight: Slot,
    /// Biases, or the shift of a normalisation.
    pub bias: Slot,
    /// Means.
    pub mean: Slot,
    /// Variances.
    pub variance: Slot,
    /// The gradient of `weight`.
    pub dweight: Slot,
    /// The gradient of `bias`.
    pub dbias: Slot,
}

impl ParamSlots {
    /// No parameters.
    pub const NONE: Self = Self {
        weight: Slot::EMPTY,
        bias: Slot::EMPTY,
        mean: Slot::EMPTY,
        variance: Slot::EMPTY,
        dweight: Slot::EMPTY,
        dbias: Slot::EMPTY,
    };

    /// The slot of one role.
    pub const fn get(&self, role: Role) -> Slot {
        match role {
            Role::Weight => self.weight,
            Role::Bias => self.bias,
            Role::Mean => self.mean,
            Role::Variance => self.variance,
        }
    }
}

/// A walk over a [`Params`] plan.
#[derive(Clone, Copy, Debug)]
pub struct ParamsWalk {
    plan: Params,
    done: Params,
}

impl ParamsWalk {
    /// The parameters of the next layer.
    ///
    /// # Errors
    /// None for the tensors that the plan was made of.
    pub const fn step(&mut self, tensors: Tensors) -> Result<ParamSlots, PlanError> {
        let Params { trained, measured, .. } = self.done;
        let (p, plan) = (self.plan.trained().at, self.plan);
        let weight = Slot::vector(p + trained, tensors.weight, Dtype::F32);
        let bias_at = trained + Word::round_up(weight.bytes());
        let bias = Slot::vector(p + bias_at, tensors.bias, Dtype::F32);
        let g = plan.gradients().at;
        let mean = Slot::vector(plan.measured().at + measured, tensors.mean, Dtype::F32);
        let variance_at = mean.at + Word::round_up(mean.bytes());
        self.done = tri!(self.done.push(tensors, 0));
        Ok(ParamSlots {
            weight,
            bias,
            mean,
            variance: Slot::vector(variance_at, tensors.variance, Dtype::F32),
            dweight: Slot { at: g + trained, ..weight },
            dbias: Slot { at: g + bias_at, ..bias },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::Dense;

    #[test]
    fn scratch_that_no_slot_can_hold_is_refused() {
        let x = Shape::rows(2, 4);
        let slot = Slot::new(0, x, Dtype::F32);
        let empty = Slot::new(0, Shape::rows(0, 4), Dtype::F32);
        let needs = Layer::Dense(Dense { units: 3, bias: true }).needs(x, Pass::Train).unwrap();
        let overflow = Err(PlanError::Overflow { layer: 0 });
        for (bytes, fits) in [(SCRATCH, true), (SCRATCH + 1, false), (usize::MAX, false)] {
            let forward = Needs { forward_scratch: bytes, ..needs };
            let backward = Needs { backward_scratch: bytes, ..needs };
            let eval = Eval::new(0, x, Layout::Nchw).unwrap();
            let eval = eval.push(0, x, Layout::Nchw, Dtype::F32, forward);
            for plan in [Train::new(0, slot).push(forward), Train::new(0, slot).push(backward)] {
                assert_eq!((plan.is_ok(), eval.is_ok()), (fits, fits), "{bytes}");
                assert!(fits || plan == overflow);
            }
            let finished = Train::new(0, empty).finish(bytes);
            assert_eq!(finished.is_ok(), fits, "{bytes}");
            if let Ok(eval) = eval {
                assert_eq!(eval.walk(2).step(forward).scratch.bytes(), bytes);
            }
        }
        // What the objective has beside a large region is not nothing.
        let plan = Train { gradients: SCRATCH * 2, ..Train::new(0, empty) };
        assert_eq!(plan.walk(Slot::EMPTY).objective_scratch().bytes(), SCRATCH);
    }

    #[test]
    fn parameters_that_no_slot_can_hold_are_refused() {
        let dense = |units| Layer::Dense(Dense { units, bias: false });
        let plan = |layers: &[Layer]| Params::new(0, Chain::new(layers), Shape::rows(1, 65_536), 0);
        let half = plan(&[dense(32_768)]).unwrap();
        assert_eq!(half.trained().bytes(), 1 << 33);
        let twice = plan(&[dense(32_768), dense(65_536)]);
        assert_eq!(twice, Err(PlanError::Overflow { layer: 1 }));
    }

    #[test]
    fn a_region_past_the_address_space_is_refused() {
        let x = Shape::rows(1, 4);
        assert_eq!(
            Eval::new(usize::MAX - 15, x, Layout::Nchw),
            Err(PlanError::Overflow { layer: 0 })
        );
        let eval = Eval::new(usize::MAX - 31, x, Layout::Nchw).unwrap();
        assert_eq!(eval.before(16), Err(PlanError::Overflow { layer: 0 }));
    }
}
