//! Planning: where every tensor of a pass lies, and how much memory that takes.
//!
//! A plan is arithmetic on shapes. It is `const` for the reference backend, so the memory of a
//! model is a constant of the program; another backend plans through its own [`Needs`] with the
//! same walks.
//!
//! * [`Eval`] keeps two activations: the one read lies at one end of the region, the one written
//!   at the other, and layers that work in place stay where they are. What a residual addition reads
//!   again stays at its end until then, and the two ends that are left lie within it; the sum is
//!   written over it.
//! * [`Train`] keeps what backward reads from the bottom up, then a region in which gradients
//!   alternate between the two ends. The gradient of a sum waits where the sum lay, which nobody reads
//!   any more, until the branch's part of its source's gradient is there to be added to.
//! * [`Params`] lays out trained parameters, measured ones, gradients and optimiser state.

use crate::arena::{Dtype, Layout, Slot, Word};
use crate::layer::{Layer, Needs, Pass, Residual, Role, Tensors};
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
    /// A batch that cannot be run in so many equal parts.
    MicroBatches {
        /// Its samples.
        batch: u32,
        /// How many parts.
        parts: u32,
    },
    /// A layer that the backend for small cores has no kernel for.
    Kernel {
        /// The layer.
        layer: usize,
    },
    /// A residual addition of what does not reach a layer of its block.
    Source {
        /// The layer, counted from the first of the block or the chain.
        layer: usize,
        /// How many layers before it lies what it adds.
        back: u8,
    },
    /// A residual addition of two shapes.
    Sum {
        /// The layer, counted from the first of the block or the chain.
        layer: usize,
        /// What reaches it.
        input: Shape,
        /// What it adds, before a projection.
        source: Shape,
    },
    /// More tensors that wait for a residual addition at once than a plan follows: [`SOURCES`].
    Sources {
        /// The layer that reads one too many.
        layer: usize,
    },
    /// More batches in flight than 2, or none.
    Queue {
        /// How many.
        batches: u32,
    },
    /// A stage that writes labels into raw samples, behind layers that were applied already.
    Raw {
        /// How many layers were.
        depth: usize,
    },
    /// Labels that cannot be written into a sample: fewer than two classes or more than 65,536, or a
    /// sample that is no image and has fewer numbers than classes.
    Label {
        /// How many classes there are.
        classes: u32,
        /// The sample.
        sample: Shape,
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
            Self::MicroBatches { batch, parts } => {
                write!(f, "a batch of {batch} samples in {parts} parts")
            }
            Self::Kernel { layer } => write!(f, "layer {layer} has no kernel for small cores"),
            Self::Source { layer, back } => write!(
                f,
                "layer {layer} adds what lies {back} layers before it, which is not in its block"
            ),
            Self::Sum { layer, input, source } => {
                write!(f, "layer {layer} cannot add {source} to {input}")
            }
            Self::Sources { layer } => write!(
                f,
                "at layer {layer} more than {SOURCES} tensors wait for a residual addition"
            ),
            Self::Queue { batches } => write!(f, "{batches} batches in flight, expected 1 or 2"),
            Self::Raw { depth } => write!(
                f,
                "samples to which {depth} layers were applied, expected raw ones to write labels into"
            ),
            Self::Label { classes, sample } => write!(
                f,
                "labels of {classes} classes in a sample of {sample}, expected 2 to 65536 classes, and \
                 for samples that are no images as many numbers"
            ),
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

    /// The layer of which layer `at` adds the input: `None` where it adds none.
    ///
    /// # Errors
    /// An input that does not lie within the chain.
    pub const fn source(&self, at: usize) -> Result<Option<usize>, PlanError> {
        match self.get(at) {
            Some(Layer::Residual(Residual { back, .. })) => {
                if *back == 0 || *back as usize > at {
                    return Err(PlanError::Source { layer: at, back: *back });
                }
                Ok(Some(at - *back as usize))
            }
            _ => Ok(None),
        }
    }

    /// How many layers further on the last residual addition of the input of layer `at` comes; 0 where
    /// there is none. A layer of which the input is held does not run within the one before it.
    pub const fn held(&self, at: usize) -> u8 {
        let (mut held, mut back) = (0, 1);
        while let Some(layer) = self.get(at + back as usize) {
            if let Layer::Residual(residual) = layer
                && residual.back == back
            {
                held = back;
            }
            if back == u8::MAX {
                break;
            }
            back += 1;
        }
        held
    }

    /// What layer `at` needs, with what the chain asks for: `needs` are those of the layer alone.
    ///
    /// # Errors
    /// A residual addition that cannot be made.
    pub const fn needs(
        &self,
        at: usize,
        reached: Reached,
        needs: Option<Needs>,
    ) -> Result<Needs, PlanError> {
        let input = reached.x.shape;
        if let (Some(Layer::Residual(residual)), Some(first)) =
            (self.get(at), tri!(self.source(at)))
        {
            let source = match reached.sources.find(first) {
                Some(source) => source.slot.shape,
                None => return Err(PlanError::Source { layer: at, back: residual.back }),
            };
            if !residual.takes(source, input) {
                return Err(PlanError::Sum { layer: at, input, source });
            }
        }
        match needs {
            Some(needs) => Ok(Needs { held: self.held(at), ..needs }),
            None => Err(PlanError::Shape { layer: at, input }),
        }
    }

    /// Checks that the layers fit each other, and that residual additions are of what they can add.
    ///
    /// # Errors
    /// The first layer that does not fit.
    pub const fn check(&self, input: Shape) -> Result<(), PlanError> {
        let mut reached = Reached { x: Slot::new(0, input, Dtype::F32), sources: Sources::NONE };
        let mut at = 0;
        while at < self.len() {
            let Some(layer) = self.get(at) else { break };
            let moving = match layer.output(reached.x.shape) {
                Some(out) => Some(Needs::moving(out)),
                None => None,
            };
            let needs = tri!(self.needs(at, reached, moving));
            let x = Slot { shape: needs.out, ..reached.x };
            let lies = End { top: false, inner: 0 };
            let sources = tri!(reached.sources.followed(at, reached.x, lies, &needs));
            reached = Reached { x, sources };
            at += 1;
        }
        Ok(())
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
    /// Scratch of the backward call, as bytes; of a residual addition, that of the source's.
    pub backward_scratch: Slot,
    /// The output's gradient; empty in a plan for evaluation.
    pub dy: Slot,
    /// The input's gradient; empty where nobody wants it.
    pub dx: Slot,
    /// What a residual addition adds.
    pub source: Slot,
    /// Its gradient; empty where nobody wants it.
    pub dsource: Slot,
}

impl Place {
    /// Nowhere.
    pub const NONE: Self = Self {
        x: Slot::EMPTY,
        y: Slot::EMPTY,
        saved: Slot::EMPTY,
        scratch: Slot::EMPTY,
        backward_scratch: Slot::EMPTY,
        dy: Slot::EMPTY,
        dx: Slot::EMPTY,
        source: Slot::EMPTY,
        dsource: Slot::EMPTY,
    };
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

/// How many tensors can wait for a residual addition at once: that of a block, and that of one within
/// it.
pub const SOURCES: usize = 2;

/// Where in a region of two ends a tensor lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    /// At the top end.
    top: bool,
    /// Bytes from that end to the tensor's inner edge.
    inner: usize,
}

impl End {
    /// The first byte of a slot that lies here, in a region of `bytes` from `at` on.
    const fn at(self, (at, bytes): (usize, usize), slot: Slot) -> usize {
        if self.top {
            (at + bytes).saturating_sub(self.inner)
        } else {
            at + self.inner.saturating_sub(Word::round_up(slot.bytes()))
        }
    }
}

/// A tensor that a residual addition reads again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Source {
    slot: Slot,
    /// Where it lies, in a plan for evaluation; where its gradient does, in one for training.
    lies: End,
    /// The layer that reads it first, and the last that adds it.
    layers: (usize, usize),
}

/// The tensors that wait for a residual addition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sources([Option<Source>; SOURCES]);

impl Sources {
    const NONE: Self = Self([None; SOURCES]);

    /// The input of layer `first`.
    const fn find(&self, first: usize) -> Option<Source> {
        let mut i = 0;
        while i < SOURCES {
            if let Some(source) = self.0[i]
                && source.layers.0 == first
            {
                return Some(source);
            }
            i += 1;
        }
        None
    }

    /// What `needs` of layer `layer` add.
    const fn added(&self, layer: usize, needs: &Needs) -> Option<Source> {
        match needs.adds {
            Some(Residual { back, .. }) if back as usize <= layer => {
                self.find(layer - back as usize)
            }
            _ => None,
        }
    }

    /// Those behind layer `layer`, which reads `x`.
    const fn followed(
        mut self,
        layer: usize,
        x: Slot,
        lies: End,
        needs: &Needs,
    ) -> Result<Self, PlanError> {
        let mut waits = None;
        if needs.held > 0 {
            let layers = (layer, layer + needs.held as usize);
            waits = Some(Source { slot: x, lies, layers });
        }
        let mut i = 0;
        while i < SOURCES {
            if let Some(source) = self.0[i]
                && source.layers.1 <= layer
            {
                self.0[i] = None;
            }
            if self.0[i].is_none() {
                (self.0[i], waits) = (waits, None);
            }
            i += 1;
        }
        if waits.is_some() { Err(PlanError::Sources { layer }) } else { Ok(self) }
    }

    /// Whether nothing that lies here waits any longer than for layer `last`: a view may.
    const fn is_last(&self, here: &End, last: usize) -> bool {
        let mut i = 0;
        while i < SOURCES {
            if let Some(Source { lies, layers, .. }) = self.0[i]
                && lies.top == here.top
                && lies.inner == here.inner
                && layers.1 > last
            {
                return false;
            }
            i += 1;
        }
        true
    }

    /// Bytes from an end of the region to the inner edge of what waits there.
    const fn bound(&self, top: bool) -> usize {
        let (mut bound, mut i) = (0, 0);
        while i < SOURCES {
            if let Some(Source { lies, .. }) = self.0[i]
                && lies.top == top
            {
                bound = max(bound, lies.inner);
            }
            i += 1;
        }
        bound
    }
}

/// What a plan or a walk has reached: the tensor, and those that wait for a residual addition.
#[derive(Clone, Copy, Debug)]
pub struct Reached {
    /// The tensor; in a plan its place is not known yet.
    pub x: Slot,
    sources: Sources,
}

impl Reached {
    /// What a chain begins with.
    pub const fn first(x: Slot) -> Self {
        Self { x, sources: Sources::NONE }
    }

    /// What layer `at` of `chain` adds; empty where it is no residual addition.
    pub const fn source(&self, chain: &Chain<'_>, at: usize) -> Slot {
        if let Ok(Some(first)) = chain.source(at)
            && let Some(source) = self.sources.find(first)
        {
            return source.slot;
        }
        Slot::EMPTY
    }
}

/// How far a plan for evaluation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    layer: usize,
    x: Slot,
    lies: End,
    /// Before which layer what it has reached may not be overwritten: it lies where a tensor does that
    /// waits.
    kept: usize,
    sources: Sources,
}

/// Where one layer works in a region of two ends.
#[derive(Clone, Copy)]
struct Work {
    y: Slot,
    lies: End,
    source: Slot,
    /// Bytes from the two ends that tensors take while it does.
    low: usize,
    high: usize,
}

impl Cursor {
    const fn new(x: Slot) -> Self {
        let lies = End { top: true, inner: Word::round_up(x.bytes()) };
        Self { layer: 0, x, lies, kept: 0, sources: Sources::NONE }
    }

    const fn reached(&self) -> Reached {
        Reached { x: self.x, sources: self.sources }
    }

    /// Before which layer the input may not be overwritten.
    const fn kept(&self, needs: &Needs) -> usize {
        if needs.held > 0 { max(self.kept, self.layer + needs.held as usize) } else { self.kept }
    }

    /// Where the next layer works. The places of slots are not set.
    const fn work(&self, needs: &Needs) -> Work {
        let y = Slot { at: 0, shape: needs.out, dtype: needs.dtype, layout: needs.layout };
        let [x_bytes, y_bytes] = [Word::round_up(self.x.bytes()), Word::round_up(y.bytes())];
        let free = self.kept(needs) < self.layer || self.kept(needs) == 0;
        let added = self.sources.added(self.layer, needs);
        let stays = End {
            top: self.lies.top,
            inner: if self.lies.top {
                self.lies.inner
            } else {
                (self.lies.inner - x_bytes).saturating_add(y_bytes)
            },
        };
        let moves = End {
            top: !self.lies.top,
            inner: self.sources.bound(!self.lies.top).saturating_add(y_bytes),
        };
        let lies = match (added, needs.adds) {
            // Nobody reads the source any more: the sum takes its place, at an end.
            (Some(Source { slot, lies, layers: (_, last) }), Some(residual))
                if last == self.layer && free && self.sources.is_last(&lies, last) =>
            {
                let alike =
                    slot.layout as u8 == y.layout as u8 && slot.dtype as u8 == y.dtype as u8;
                if residual.project.is_none() && alike {
                    lies
                } else if lies.top == self.lies.top {
                    moves
                } else {
                    stays
                }
            }
            _ if needs.view || (needs.in_place && free) => stays,
            _ => moves,
        };
        let [mut low, mut high] = [self.sources.bound(false), self.sources.bound(true)];
        let ends = [self.lies, lies];
        let mut i = 0;
        while i < ends.len() {
            if ends[i].top {
                high = max(high, ends[i].inner);
            } else {
                low = max(low, ends[i].inner);
            }
            i += 1;
        }
        let source = match added {
            Some(source) => source.slot,
            None => Slot::EMPTY,
        };
        Work { y, lies, source, low, high }
    }

    /// Behind the next layer, which gives `y`.
    const fn followed(self, needs: &Needs, y: Slot, lies: End) -> Result<Self, PlanError> {
        let sources = tri!(self.sources.followed(self.layer, self.x, self.lies, needs));
        let kept = if needs.view { self.kept(needs) } else { 0 };
        Ok(Self { layer: self.layer + 1, x: y, lies, kept, sources })
    }
}

/// A pass that keeps nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eval {
    at: usize,
    bytes: usize,
    input: Slot,
    cursor: Cursor,
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
        let input = Slot { at, ..input };
        Ok(Self { at, bytes, input, cursor: Cursor::new(input) })
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
        let mut i = 0;
        while i < chain.len() {
            let Some(layer) = chain.get(i) else { break };
            let needs = layer.needs(plan.cursor.x.shape, pass);
            plan = tri!(plan.push(tri!(chain.needs(i, plan.reached(), needs))));
            i += 1;
        }
        Ok(plan)
    }

    /// What the last layer pushed gives.
    pub const fn reached(&self) -> Reached {
        self.cursor.reached()
    }

    /// Makes room for one more layer.
    ///
    /// # Errors
    /// Sizes past the address space, more tensors that wait for a residual addition than [`SOURCES`].
    pub const fn push(self, needs: Needs) -> Result<Self, PlanError> {
        let layer = self.cursor.layer;
        tri!(room(needs.out, needs.layout, needs.dtype, layer));
        let Work { y, lies, low, high, .. } = self.cursor.work(&needs);
        let mut bytes = tri!(add(low, high, layer));
        bytes = tri!(add(bytes, tri!(saved_room(needs, layer)), layer));
        bytes = tri!(add(bytes, tri!(scratch_room(needs.forward_scratch, layer)), layer));
        tri!(add(self.at, bytes, layer));
        let cursor = tri!(self.cursor.followed(&needs, y, lies));
        Ok(Self { bytes: max(self.bytes, bytes), cursor, ..self })
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
        let cursor = Cursor { x: self.input().head(n), ..Cursor::new(self.input()) };
        EvalWalk { region: (self.at, self.bytes), cursor }
    }
}

const fn saved_room(needs: Needs, layer: usize) -> Result<usize, PlanError> {
    room(Shape::rows(1, needs.saved.0), Layout::Nchw, needs.saved.1, layer)
}

/// A walk over an [`Eval`] plan.
#[derive(Clone, Copy, Debug)]
pub struct EvalWalk {
    /// Where the region begins, and its bytes.
    region: (usize, usize),
    cursor: Cursor,
}

impl EvalWalk {
    /// The tensor that the walk has reached.
    pub const fn x(&self) -> Slot {
        self.cursor.x
    }

    /// The same, with what waits for a residual addition.
    pub const fn reached(&self) -> Reached {
        self.cursor.reached()
    }

    /// Where the next layer works; moves on to its output.
    ///
    /// # Errors
    /// None for the needs that the plan was made of.
    pub const fn step(&mut self, needs: Needs) -> Result<Place, PlanError> {
        let x = self.cursor.x;
        let Work { y, lies, source, low, .. } = self.cursor.work(&needs);
        let y = Slot { at: lies.at(self.region, y), ..y };
        // Saved values and scratch lie between the two ends.
        let saved = Slot::vector(self.region.0 + low, needs.saved.0, needs.saved.1);
        let scratch_at = saved.at + Word::round_up(saved.bytes());
        let scratch = bytes_slot(scratch_at, Word::round_up(needs.forward_scratch));
        self.cursor = tri!(self.cursor.followed(&needs, y, lies));
        Ok(Place { x, y, saved, scratch, source, ..Place::NONE })
    }

    /// Passes over `layers` that the last one runs with it, and that are views of what it gave.
    pub(crate) const fn skip(&mut self, layers: usize) {
        self.cursor.layer += layers;
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
    /// The last layer pushed keeps its output, or one before it that lies there.
    keeps: bool,
    /// After how many layers it does so whatever it needs itself.
    kept_after: usize,
    layers: usize,
    sources: Sources,
    /// Behind the last residual addition of which the sum lies, or lay, where the output does.
    summed: usize,
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
            sources: Sources::NONE,
            summed: 0,
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
            let needs = layer.needs(plan.output, Pass::Train);
            plan = tri!(plan.push(tri!(chain.needs(i, plan.reached(), needs))));
            i += 1;
        }
        plan.finish(loss_scratch)
    }

    /// Whether the next layer may overwrite its input.
    const fn in_place(self, needs: Needs) -> bool {
        // Two sums of which the gradients wait at once lie in two places.
        let waits = match needs.adds {
            Some(Residual { back, .. }) => self.layers < self.summed + back as usize,
            None => false,
        };
        needs.view || (needs.in_place && !self.keeps && needs.held == 0 && !waits)
    }

    /// What the last layer pushed gives.
    pub const fn reached(&self) -> Reached {
        let x = Slot { at: self.at, shape: self.output, dtype: Dtype::F32, layout: self.layout };
        Reached { x, sources: self.sources }
    }

    /// Makes room for one more layer.
    ///
    /// # Errors
    /// Sizes past the address space, more tensors that wait for a residual addition than [`SOURCES`].
    pub const fn push(self, needs: Needs) -> Result<Self, PlanError> {
        self.followed(needs, self.reached().x, false)
    }

    /// Behind the next layer, which reads `x`, whose gradient lies at the top or not.
    const fn followed(self, needs: Needs, x: Slot, top: bool) -> Result<Self, PlanError> {
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
        let mut gradients = max(self.gradients, max(backward, forward));
        if let Some(Source { slot, layers, .. }) = self.sources.added(layer, &needs) {
            // Its gradient is there when the sum's is added to it.
            let source = match layers {
                (0, _) => 0,
                _ => tri!(room(slot.shape, slot.layout, Dtype::F32, layer)),
            };
            let scratch = tri!(scratch_room(needs.backward_scratch, layer));
            gradients = max(gradients, tri!(add(source, scratch, layer)));
        }
        let keeps = if needs.view { self.keeps || needs.held > 0 } else { needs.keeps_output };
        let keeps = keeps || layer + 1 == self.kept_after;
        let lies = End { top, inner: 0 };
        let sources = tri!(self.sources.followed(layer, x, lies, &needs));
        let summed = if needs.adds.is_some() {
            layer + 1
        } else if self.in_place(needs) {
            self.summed
        } else {
            0
        };
        Ok(Self {
            kept,
            gradients,
            sources,
            summed,
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
        TrainWalk { plan: self, done: start, x, top: false }
    }
}

/// A walk over a [`Train`] plan.
#[derive(Clone, Copy, Debug)]
pub struct TrainWalk {
    plan: Train,
    done: Train,
    x: Slot,
    /// Its gradient lies at the top end of the region of gradients.
    top: bool,
}

impl TrainWalk {
    /// The tensor that the walk has reached.
    pub const fn x(&self) -> Slot {
        self.x
    }

    /// The same, with what waits for a residual addition.
    pub const fn reached(&self) -> Reached {
        Reached { x: self.x, sources: self.done.sources }
    }

    /// The gradient of the tensor that the walk has reached.
    pub const fn dx(&self) -> Slot {
        self.gradient(self.x, self.top)
    }

    /// Scratch for the objective, beside the gradient of the tensor that the walk has reached.
    pub const fn objective_scratch(&self) -> Slot {
        let used = Word::round_up(self.dx().bytes());
        let start = self.plan.at + self.plan.kept;
        let at = if self.top { start } else { start + used };
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
        let (x, top, layer) = (self.x, self.top, self.done.layers);
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
        let mut scratch_at = start + Word::round_up(low.bytes());
        let [mut source, mut dsource] = [Slot::EMPTY; 2];
        if let Some(Source { slot, lies, layers: (first, _) }) =
            self.done.sources.added(layer, &needs)
        {
            source = slot;
            if first > 0 {
                dsource = self.gradient(slot, lies.top);
            }
            scratch_at = if lies.top { start } else { start + Word::round_up(dsource.bytes()) };
        }
        self.done = tri!(self.done.followed(needs, x, top));
        (self.x, self.top) = (y, y_top);
        Ok(Place {
            x,
            y,
            saved,
            scratch: bytes_slot(start, Word::round_up(needs.forward_scratch)),
            backward_scratch: bytes_slot(scratch_at, Word::round_up(needs.backward_scratch)),
            dy,
            dx: wanted,
            source,
            dsource,
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
            let eval = eval.push(forward);
            for plan in [Train::new(0, slot).push(forward), Train::new(0, slot).push(backward)] {
                assert_eq!((plan.is_ok(), eval.is_ok()), (fits, fits), "{bytes}");
                assert!(fits || plan == overflow);
            }
            let finished = Train::new(0, empty).finish(bytes);
            assert_eq!(finished.is_ok(), fits, "{bytes}");
            if let Ok(eval) = eval {
                assert_eq!(eval.walk(2).step(forward).unwrap().scratch.bytes(), bytes);
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
