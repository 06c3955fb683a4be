//! Fit and predict on `ndarray` arrays, for those who know scikit-learn or linfa.
//!
//! | there | here |
//! |---|---|
//! | `MLPClassifier(...)`, `Params::new()` | [`Classifier::on`] a device, then its methods: all have defaults |
//! | `fit(X, y)` | [`fit`](Classifier::fit): an error names the value that is wrong; the result is a type of its own |
//! | `predict`, `decision_function`, `predict_proba`, `transform`, `score` | [`predict`](Fitted::predict), [`predict_logits`](Fitted::predict_logits), [`predict_proba`](Fitted::predict_proba), [`transform`](Fitted::transform), [`score`](Fitted::score) |
//! | `partial_fit` | [`tune`](Fitted::tune), of some blocks |
//! | `joblib.dump`, `load` | [`save`](Fitted::save), [`load`](Fitted::load): the model file, which every program here and every device reads |
//!
//! Samples are arrays of `f32` or `u8`: (samples, channels, height, width), or (samples, features). They
//! are read where they lie, whatever their strides; see [`View`]. Labels are `usize` or `u16`, from 0.
//!
//! Inputs are normalised by the net, as one affine map that the model file holds: bytes are divided by
//! 255; then the mean over all elements of the training samples is subtracted, and divided by their
//! deviation, unless [`normalisation`](Classifier::normalisation) gives others. The dense net measures
//! mean and deviation of each feature in its first layer instead. What a net is fitted on in one type,
//! it predicts in the same: 255 as a number is not 255 as a byte.
//!
//! ```
//! use ndarray::{ArrayView1, ArrayView4};
//! use sepal_core::reference::OnReference; // or sepal_cpu::OnCpu
//! use sepal_models::data::{self, Dataset, Samples};
//! use sepal_models::estimator::{Classifier, Fitted};
//!
//! fn arrays(set: &Dataset) -> (ArrayView4<'_, u8>, ArrayView1<'_, u16>) {
//!     let Samples::U8(pixels) = set.samples() else { panic!("images of bytes") };
//!     let shape = (set.len() as usize, 1, 28, 28);
//!     (ArrayView4::from_shape(shape, pixels).expect("as long"), set.labels().into())
//! }
//!
//! let (train, test) = (data::bundled().train.head(512)?, data::bundled().test.head(200)?);
//! let ((x, y), (x_test, y_test)) = (arrays(&train), arrays(&test));
//! let fitted = Classifier::on(OnReference).epochs(1).head_epochs(8).fit(x, y)?;
//!
//! assert!(fitted.score(x_test, y_test)? > 0.5);
//! let classes = fitted.predict(x_test)?;
//! let sure = fitted.predict_proba(x_test)?;
//! assert_eq!((classes.len(), sure.dim()), (200, (200, 10)));
//! // What each block makes of samples, and how well it tells the classes apart.
//! assert_eq!(fitted.transform(x_test, 1)?.dim(), (200, 16 * 5 * 5));
//! let separation = fitted.separation_index(x, y)?;
//! assert!(separation.iter().all(|si| *si > Some(0.5)));
//!
//! let folder = tempfile::tempdir()?;
//! fitted.save(&folder.path().join("fashion.sepal"))?;
//! let again = Fitted::load(OnReference, &folder.path().join("fashion.sepal"))?;
//! assert_eq!(again.predict(x_test)?, classes);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::ops::Range;
use std::path::Path;

use ndarray::{Array1, Array2, ArrayView, ArrayView1, RemoveAxis};
use sepal_core::backend::Device;
use sepal_core::error::Error;
use sepal_core::format::{Meta, Provenance};
use sepal_core::layer::Layer;
use sepal_core::loss::softmax;
use sepal_core::net::{Input, Model, Net, Normalisation, Weights};
use sepal_core::plan::PlanError;
use sepal_core::shape::Shape;
use sepal_core::source::Source;
use sepal_core::stage::{Cut, Outcome, Recipe, Stage};
use sepal_core::strategy::Strategy;

use crate::architecture::Architecture;
use crate::cache::Budget;
use crate::data::{DataError, Element, Label, View, numbered};
use crate::features::Features;
use crate::file::{self, FileError, Loaded};
use crate::fit::{Fit, FitError, Snapshot, Watch};
use crate::learning::{Learning, SettingError, Way};

/// Why an estimator cannot do what it was asked.
#[derive(Debug)]
#[non_exhaustive]
pub enum EstimatorError {
    /// Arrays that are no samples with their labels.
    Data(DataError),
    /// A setting that is out of range.
    Setting(SettingError),
    /// Samples that the architecture cannot take.
    Shape {
        /// The architecture.
        architecture: Architecture,
        /// The samples' shape.
        shape: Shape,
        /// Which layer cannot.
        error: PlanError,
    },
    /// Blocks that the net has not.
    Blocks {
        /// The blocks asked for, one past the last included.
        asked: Range<usize>,
        /// How many it has.
        blocks: usize,
    },
    /// The run failed.
    Fit(FitError),
    /// The model file could not be written or read.
    File(FileError),
}

impl std::fmt::Display for EstimatorError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Data(e) => e.fmt(f),
            Self::Setting(e) => e.fmt(f),
            Self::Shape { architecture, shape, error } => {
                write!(f, "{architecture:?} cannot take samples of {shape}: {error}")
            }
            Self::Blocks { asked: Range { start, end }, blocks } => {
                write!(f, "blocks {start}..{end}, expected some of 0..{blocks}")
            }
            Self::Fit(e) => e.fmt(f),
            Self::File(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for EstimatorError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Data(e) => Some(e),
            Self::Setting(e) => Some(e),
            Self::Shape { error, .. } => Some(error),
            Self::Blocks { .. } => None,
            Self::Fit(e) => Some(e),
            Self::File(e) => Some(e),
        }
    }
}

macro_rules! from {
    ($($t:ty => $v:ident),*) => {
        $(impl From<$t> for EstimatorError { fn from(e: $t) -> Self { Self::$v(e) } })*
    };
}
from!(DataError => Data, SettingError => Setting, FitError => Fit, FileError => File);

impl From<Error> for EstimatorError {
    fn from(error: Error) -> Self {
        Self::Fit(error.into())
    }
}

impl From<PlanError> for EstimatorError {
    fn from(error: PlanError) -> Self {
        Self::Fit(error.into())
    }
}

/// What is to be fitted, and how: [`on`](Self::on) says the defaults.
#[derive(Clone, Debug)]
pub struct Classifier<D> {
    device: D,
    architecture: Option<Architecture>,
    learning: Learning,
    epochs: Option<u16>,
    head_epochs: Option<u16>,
    classes: Option<u16>,
    seed: u64,
    normalisation: Option<Normalisation>,
    budget: Budget,
}

/// Updates of a block and of the classifier that passes make at least, unless they are set: a hundred
/// samples are one batch, and 30 updates are too few for a classifier.
const UPDATES: [u32; 2] = [40, 300];

impl<D: Device> Classifier<D> {
    /// A classifier that learns and runs on `device`, by [`Learning::default`]: forward by SI, 5 passes a
    /// block, 30 for the classifier behind them, batches of 128. Where samples are few there are more
    /// passes: as many as make 40 updates of a block, and 300 of the classifier. Images are given to LeNet,
    /// rows of features to the [dense net](crate::dense). The seed is 0.
    pub fn on(device: D) -> Self {
        Self {
            device,
            architecture: None,
            learning: Learning::default(),
            epochs: None,
            head_epochs: None,
            classes: None,
            seed: 0,
            normalisation: None,
            budget: Budget::default(),
        }
    }

    /// Everything of how it learns at once, such as a recipe from a file; what is set afterwards counts
    /// over it.
    #[must_use]
    pub fn learning(self, learning: Learning) -> Self {
        let Learning { architecture, epochs, head_epochs, .. } = learning;
        let (epochs, head_epochs) = (Some(epochs), Some(head_epochs));
        Self { learning, architecture: Some(architecture), epochs, head_epochs, ..self }
    }

    /// The architecture.
    #[must_use]
    pub fn architecture(self, architecture: Architecture) -> Self {
        Self { architecture: Some(architecture), ..self }
    }

    /// The strategy: [`Way::Si`] unless set.
    #[must_use]
    pub fn strategy(self, way: Way) -> Self {
        Self { learning: Learning { way, ..self.learning }, ..self }
    }

    /// Passes for each block; for the whole net where it learns end to end.
    #[must_use]
    pub fn epochs(self, epochs: u16) -> Self {
        Self { epochs: Some(epochs), ..self }
    }

    /// Passes for the classifier behind the blocks.
    #[must_use]
    pub fn head_epochs(self, head_epochs: u16) -> Self {
        Self { head_epochs: Some(head_epochs), ..self }
    }

    /// Samples in a step; all of them where there are fewer.
    #[must_use]
    pub fn batch(self, batch: u32) -> Self {
        Self { learning: Learning { batch, ..self.learning }, ..self }
    }

    /// First learning rate of blocks: 1e-2 unless set.
    #[must_use]
    pub fn rate(self, rate: f32) -> Self {
        Self { learning: Learning { rate, ..self.learning }, ..self }
    }

    /// First learning rate of the classifier: 1e-3 unless set.
    #[must_use]
    pub fn head_rate(self, head_rate: f32) -> Self {
        Self { learning: Learning { head_rate, ..self.learning }, ..self }
    }

    /// Decides weights and batches. The same seed and samples give the same bits on one device.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// How many classes there are: one more than the largest label unless set.
    #[must_use]
    pub fn classes(self, classes: u16) -> Self {
        Self { classes: Some(classes), ..self }
    }

    /// What happens to raw samples before the first layer, in place of what is measured.
    #[must_use]
    pub fn normalisation(self, normalisation: Normalisation) -> Self {
        Self { normalisation: Some(normalisation), ..self }
    }

    /// Where the output of frozen blocks is kept: in half of the memory that is free unless set.
    #[must_use]
    pub fn budget(self, budget: Budget) -> Self {
        Self { budget, ..self }
    }

    /// Learns to tell the classes of labelled samples apart.
    ///
    /// # Errors
    /// Arrays that [`View::new`] refuses; all samples of one class, a label that is no class; a setting
    /// out of range; samples that the architecture cannot take; a training that diverges, or in which no
    /// class has two samples in any batch.
    pub fn fit<T: Element, X: RemoveAxis, L: Label>(
        self,
        x: ArrayView<'_, T, X>,
        y: ArrayView1<'_, L>,
    ) -> Result<Fitted<D>, EstimatorError> {
        self.fit_watched(x, y, &mut ())
    }

    /// [`fit`](Self::fit) under the eyes of a watcher, such as `Traced`.
    ///
    /// # Errors
    /// Those of [`fit`](Self::fit); the watcher failed, or wished to stop.
    pub fn fit_watched<T: Element, X: RemoveAxis, L: Label>(
        self,
        x: ArrayView<'_, T, X>,
        y: ArrayView1<'_, L>,
        watch: &mut impl Watch,
    ) -> Result<Fitted<D>, EstimatorError> {
        let rows = x.ndim() == 2;
        let mut view = View::new(x, y)?;
        let largest = view.labels().iter().max().map_or(0, |&label| usize::from(label));
        let classes = self.classes.map_or(largest + 1, usize::from);
        check_labels(view.labels(), classes)?;
        check_apart(view.labels())?;
        let usual = if rows { Architecture::Dense } else { Architecture::Lenet };
        let architecture = self.architecture.unwrap_or(usual);
        let batch = match Source::len(&view) {
            // In as many equal parts as the batch that was asked for.
            few if few < self.learning.batch => {
                let Learning { way, micro_batches, .. } = self.learning;
                let part = micro_batches.saturating_mul(way.places()).max(1);
                if few < part { few } else { few - few % part }
            }
            _ => self.learning.batch,
        };
        let steps = Source::len(&view) / batch.max(1);
        let passes = |usual: u16, updates: u32| usual.max(updates.div_ceil(steps.max(1)) as u16);
        let [block, classifier] = UPDATES;
        let epochs = self.epochs.unwrap_or(passes(self.learning.epochs, block));
        let head_epochs = self.head_epochs.unwrap_or(passes(self.learning.head_epochs, classifier));
        let learning = Learning { architecture, batch, epochs, head_epochs, ..self.learning };
        learning.check()?;
        if learning.way == Way::SelfSupervised {
            let (found, expected) = ("SelfSupervised".to_owned(), "one that reads labels");
            return Err(SettingError { field: "way", found, expected }.into());
        }

        let layers = architecture.layers(classes as u32, learning.width);
        let measured = || architecture.normalisation(view.moments(), T::BYTES);
        let normalisation = self.normalisation.unwrap_or_else(measured);
        let input = Input { shape: Source::shape(&view), normalisation };
        let net = architecture.net(&layers, input);
        let (layers, blocks) = learning.layers(&net);
        let net = Net { layers: &layers, blocks: &blocks, ..net };
        let refused = |error| EstimatorError::Shape { architecture, shape: input.shape, error };
        net.check().map_err(refused)?;
        let heads = learning.heads(&net, classes as u32)?;
        let heads: Vec<&[Layer]> = heads.iter().map(Vec::as_slice).collect();
        let mut fit = Fit::new(net, self.seed)?;
        fit.run(
            &self.device,
            &learning.chosen(&heads, classes as u32),
            &mut view,
            &self.budget,
            watch,
        )?;
        Ok(Fitted {
            device: self.device,
            input,
            blocks: net.blocks.to_vec(),
            features: net.features,
            weights: fit.snapshot().weights,
            recipe: format!("{learning:?}"),
            seed: self.seed,
            layers,
        })
    }
}

/// Refuses labels that are no classes, or only one.
fn check_labels(labels: &[u16], classes: usize) -> Result<(), DataError> {
    let outside = |&(_, &label): &(usize, &u16)| usize::from(label) >= classes;
    if let Some((sample, label)) = labels.iter().enumerate().find(outside) {
        let expected = match classes.checked_sub(1) {
            Some(last) => format!("0 to {last}, as there are {classes} classes"),
            None => "2 classes or more".to_owned(),
        };
        return Err(DataError::samples(
            format!("label of sample {sample}"),
            label.to_string(),
            expected,
        ));
    }
    Ok(())
}

/// Refuses labels of one class: there is nothing to tell apart.
fn check_apart(labels: &[u16]) -> Result<(), DataError> {
    let first = labels.first().copied().unwrap_or(0);
    if labels.iter().any(|&label| label != first) {
        return Ok(());
    }
    let found = format!("class {first} for all {} samples", labels.len());
    Err(DataError::samples("labels", found, "2 classes or more"))
}

/// A net that has learnt, with the device that it runs on.
#[derive(Clone, Debug)]
pub struct Fitted<D> {
    device: D,
    input: Input,
    layers: Vec<Layer>,
    blocks: Vec<u16>,
    features: u16,
    weights: Vec<f32>,
    recipe: String,
    seed: u64,
}

impl<D: Device> Fitted<D> {
    /// The net with its weights, for everything else that takes one.
    pub fn model(&self) -> Model<'_> {
        Model { net: self.net(), weights: Weights::Flat(&self.weights) }
    }

    fn net(&self) -> Net<'_> {
        let Self { input, features, .. } = *self;
        Net { input, layers: &self.layers, blocks: &self.blocks, features }
    }

    /// How many classes it tells apart.
    ///
    /// # Errors
    /// None: the net was checked before.
    fn classes(&self) -> Result<usize, EstimatorError> {
        Ok(self.net().output()?.sample().unwrap_or(0) as usize)
    }

    /// What the layers before `last` make of samples.
    fn features<T: Element, X: RemoveAxis>(
        &self,
        view: &mut View<'_, T, X>,
        last: usize,
    ) -> Result<Features, EstimatorError> {
        Ok(Features::new(&self.device, &self.model(), view, last)?)
    }

    fn logits<T: Element, X: RemoveAxis>(
        &self,
        x: ArrayView<'_, T, X>,
    ) -> Result<Features, EstimatorError> {
        self.features(&mut View::unlabelled(x)?, self.layers.len())
    }

    /// The class of each sample: the first of its largest logits.
    ///
    /// # Errors
    /// Arrays that [`View::unlabelled`] refuses, samples of another shape than the net takes; a device
    /// that failed.
    pub fn predict<T: Element, X: RemoveAxis>(
        &self,
        x: ArrayView<'_, T, X>,
    ) -> Result<Array1<usize>, EstimatorError> {
        Ok(self.logits(x)?.largest().into_iter().map(usize::from).collect())
    }

    /// The logits of each sample, (M, classes).
    ///
    /// # Errors
    /// Those of [`predict`](Self::predict).
    pub fn predict_logits<T: Element, X: RemoveAxis>(
        &self,
        x: ArrayView<'_, T, X>,
    ) -> Result<Array2<f32>, EstimatorError> {
        rows(&self.logits(x)?)
    }

    /// How sure it is of each class, (M, classes): `exp(z_k) / sum_j exp(z_j)` of the logits. Each row
    /// adds up to 1.
    ///
    /// # Errors
    /// Those of [`predict`](Self::predict).
    pub fn predict_proba<T: Element, X: RemoveAxis>(
        &self,
        x: ArrayView<'_, T, X>,
    ) -> Result<Array2<f32>, EstimatorError> {
        let mut rows = self.predict_logits(x)?;
        rows.rows_mut().into_iter().filter_map(|row| row.into_slice()).for_each(softmax);
        Ok(rows)
    }

    /// What block `block`, counted from 0, makes of each sample, (M, D): the numbers that the next block
    /// reads.
    ///
    /// # Errors
    /// Those of [`predict`](Self::predict), and a block that the net has not.
    pub fn transform<T: Element, X: RemoveAxis>(
        &self,
        x: ArrayView<'_, T, X>,
        block: usize,
    ) -> Result<Array2<f32>, EstimatorError> {
        let (_, last) = self.layers_of(block..block.saturating_add(1))?;
        rows(&self.features(&mut View::unlabelled(x)?, last)?)
    }

    /// The Separation Index (Eq. 1 of the paper) of labelled samples behind each block that gives
    /// features: the share whose nearest other sample has their label, by embeddings scaled to length 1.
    /// `None` where there is one sample alone.
    ///
    /// # Errors
    /// Those of [`predict`](Self::predict), and another number of labels than of samples.
    pub fn separation_index<T: Element, X: RemoveAxis, L: Label>(
        &self,
        x: ArrayView<'_, T, X>,
        y: ArrayView1<'_, L>,
    ) -> Result<Vec<Option<f64>>, EstimatorError> {
        let mut view = View::new(x, y)?;
        let ends = self.blocks.iter().take(self.features.into());
        let si = |&end: &u16| {
            let features = self.features(&mut view, end.into())?.unit();
            Ok(features.si(&self.device)?.value())
        };
        ends.map(si).collect()
    }

    /// The share of labelled samples that it gives their class.
    ///
    /// # Errors
    /// Those of [`predict`](Self::predict), another number of labels than of samples, a label that is no
    /// class of the net.
    pub fn score<T: Element, X: RemoveAxis, L: Label>(
        &self,
        x: ArrayView<'_, T, X>,
        y: ArrayView1<'_, L>,
    ) -> Result<f64, EstimatorError> {
        let mut view = View::new(x, y)?;
        check_labels(view.labels(), self.classes()?)?;
        Ok(self.features(&mut view, self.layers.len())?.accuracy())
    }

    /// Learns on: the layers of blocks `blocks`, counted from 0, together, by `recipe`, on new samples of
    /// the same classes. All other layers stay as they are. A failed run changes nothing.
    ///
    /// Whoever tunes a block that gives features tunes the classifier behind it afterwards, as it knows
    /// the features of before:
    ///
    /// ```
    /// # use ndarray::{Array1, Array2};
    /// # use sepal_core::reference::OnReference;
    /// # use sepal_models::{estimator::Classifier, recipe};
    /// # let y = Array1::from_shape_fn(40, |i| i % 2);
    /// # let x = Array2::from_shape_fn((40, 3), |(i, j)| (i % 2 * j + i % 7) as f32);
    /// let mut fitted = Classifier::on(OnReference).head_epochs(2).fit(x.view(), y.view())?;
    /// fitted.tune(1..2, recipe::block(3), x.view(), y.view())?;
    /// fitted.tune(2..3, recipe::classifier(3), x.view(), y.view())?;
    /// # Ok::<(), sepal_models::estimator::EstimatorError>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`score`](Self::score), blocks that the net has not, samples of one class; a run that
    /// fails.
    pub fn tune<T: Element, X: RemoveAxis, L: Label>(
        &mut self,
        blocks: Range<usize>,
        recipe: Recipe<'_>,
        x: ArrayView<'_, T, X>,
        y: ArrayView1<'_, L>,
    ) -> Result<(), EstimatorError> {
        let mut view = View::new(x, y)?;
        check_labels(view.labels(), self.classes()?)?;
        check_apart(view.labels())?;
        let (first, last) = self.layers_of(blocks)?;
        let recipe = Recipe { batch: recipe.batch.min(Source::len(&view)), ..recipe };
        let (first, last) = (first as u16, last as u16);
        let tune = One(Stage { first, last, calibrate: true, cut: Cut::Whole, recipe });
        let snapshot =
            Snapshot { weights: self.weights.clone(), outcomes: Vec::new(), underway: None };
        let mut fit = Fit::resume(self.net(), self.seed, snapshot)?;
        fit.run(&self.device, &tune, &mut view, &Budget::default(), &mut ())?;
        self.weights = fit.snapshot().weights;
        Ok(())
    }

    /// The first layer of some blocks, and one past their last.
    fn layers_of(&self, asked: Range<usize>) -> Result<(usize, usize), EstimatorError> {
        let net = self.net();
        let first = net.block(asked.start);
        let last = asked.end.checked_sub(1).filter(|&last| last >= asked.start);
        match (first, last.and_then(|last| net.block(last))) {
            (Some((first, _)), Some((_, last))) => Ok((first, last)),
            _ => Err(EstimatorError::Blocks { asked, blocks: self.blocks.len() }),
        }
    }

    /// Writes a model file. Classes are called by their numbers.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn save(&self, path: &Path) -> Result<(), EstimatorError> {
        let last = self.classes()?.saturating_sub(1) as u16;
        let names = numbered(&[last]);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (version, recipe) = (env!("CARGO_PKG_VERSION"), &*self.recipe);
        let provenance = Provenance { version, recipe, seed: self.seed, data: 0 };
        let meta = Meta { classes: &names, provenance: Some(provenance), ..Meta::NONE };
        Ok(file::save(path, &self.model(), &meta)?)
    }

    /// Reads a model file, whoever wrote it; weights in narrower types become f32.
    ///
    /// # Errors
    /// A file that cannot be read, is no model file, is truncated or corrupt.
    pub fn load(device: D, path: &Path) -> Result<Self, EstimatorError> {
        let loaded = Loaded::open(path)?;
        let Net { input, layers, blocks, features } = loaded.model().net;
        let provenance = loaded.file()?.provenance().unwrap_or_default();
        Ok(Self {
            device,
            input,
            layers: layers.to_vec(),
            blocks: blocks.to_vec(),
            features,
            weights: loaded.weights()?,
            recipe: provenance.recipe.to_owned(),
            seed: provenance.seed,
        })
    }
}

/// A row for each sample.
fn rows(features: &Features) -> Result<Array2<f32>, EstimatorError> {
    let shape = (features.labels().len(), features.dim());
    let rows = Array2::from_shape_vec(shape, features.data().to_vec());
    rows.map_err(|_| Error::Unsupported("rows of different lengths").into())
}

/// One stage.
struct One<'m>(Stage<'m>);

impl Strategy for One<'_> {
    fn next(&self, _: &Net<'_>, done: &[Outcome]) -> Option<Stage<'_>> {
        done.is_empty().then_some(self.0)
    }
}
