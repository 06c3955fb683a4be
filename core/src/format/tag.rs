//! The numbers that stand for layers, roles and element types in a file.
//!
//! One table, a number for each [`Layer`] variant and for each kind of [`Activation`]. Numbers
//! are never reordered and never reused; a layer that is dropped keeps its number. The fields
//! that follow a tag are written and read here one by one, so that a field added to a layer's
//! type does not change files unseen: it does not compile until this file says where it goes.

use serde::{Serialize, Serializer};

use super::error::FormatError;
use super::record::Fields;
use crate::arena::Dtype;
use crate::layer::{
    Activation, AvgPool, AvgPoolTo, BatchNorm, ChannelStd, Conv2d, Dense, Dropout, Embedding,
    Flatten, GlobalAvgPool, KMaxPool, L2Normalise, Layer, MaxPool, Project, Projection, Quantise,
    Residual, Role, SpaceToDepth, Standardise, Window,
};

macro_rules! tags {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        $(#[doc = concat!("The tag of `", $text, "`.")] pub const $name: u16 = $number;)*

        /// Every tag with the layer's name, [`Layer::name`].
        pub const TABLE: &[(u16, &str)] = &[$(($name, $text)),*];
    };
}

tags! {
    CONV2D = 1, "conv2d";
    BATCH_NORM = 2, "batch_norm";
    RELU = 3, "relu";
    RELU6 = 4, "relu6";
    LEAKY_RELU = 5, "leaky_relu";
    TANH = 6, "tanh";
    MAX_POOL = 7, "max_pool";
    AVG_POOL = 8, "avg_pool";
    GLOBAL_AVG_POOL = 9, "global_avg_pool";
    DENSE = 10, "dense";
    DROPOUT = 11, "dropout";
    FLATTEN = 12, "flatten";
    STANDARDISE = 13, "standardise";
    L2_NORMALISE = 14, "l2_normalise";
    AVG_POOL_TO = 15, "avg_pool_to";
    CHANNEL_STD = 16, "channel_std";
    PROJECT = 17, "project";
    RESIDUAL = 18, "residual";
    EMBEDDING = 19, "embedding";
    K_MAX_POOL = 20, "k_max_pool";
    SPACE_TO_DEPTH = 21, "space_to_depth";
    QUANTISE = 22, "quantise";
}

/// The tag of a layer.
pub const fn of(layer: &Layer) -> u16 {
    match layer {
        Layer::Conv2d(_) => CONV2D,
        Layer::BatchNorm(_) => BATCH_NORM,
        Layer::Activation(Activation::Relu) => RELU,
        Layer::Activation(Activation::Relu6) => RELU6,
        Layer::Activation(Activation::LeakyRelu { .. }) => LEAKY_RELU,
        Layer::Activation(Activation::Tanh) => TANH,
        Layer::MaxPool(_) => MAX_POOL,
        Layer::AvgPool(_) => AVG_POOL,
        Layer::GlobalAvgPool(_) => GLOBAL_AVG_POOL,
        Layer::Dense(_) => DENSE,
        Layer::Dropout(_) => DROPOUT,
        Layer::Flatten(_) => FLATTEN,
        Layer::Standardise(_) => STANDARDISE,
        Layer::L2Normalise(_) => L2_NORMALISE,
        Layer::AvgPoolTo(_) => AVG_POOL_TO,
        Layer::ChannelStd(_) => CHANNEL_STD,
        Layer::Project(_) => PROJECT,
        Layer::Residual(_) => RESIDUAL,
        Layer::Embedding(_) => EMBEDDING,
        Layer::KMaxPool(_) => K_MAX_POOL,
        Layer::SpaceToDepth(_) => SPACE_TO_DEPTH,
        Layer::Quantise(_) => QUANTISE,
    }
}

/// A layer as it is written: its tag, then its fields.
pub(super) struct Tagged<'a>(pub(super) &'a Layer);

impl Serialize for Tagged<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let tag = of(self.0);
        let window = |window: Window, s: S| {
            let Window { kernel, stride, pad } = window;
            (tag, kernel, stride, pad).serialize(s)
        };
        match *self.0 {
            Layer::Conv2d(Conv2d { filters, kernel, stride, pad, groups, bias }) => {
                (tag, filters, kernel, stride, pad, groups, bias).serialize(s)
            }
            Layer::BatchNorm(BatchNorm { affine, eps, momentum }) => {
                (tag, affine, eps, momentum).serialize(s)
            }
            Layer::Activation(Activation::LeakyRelu { slope }) => (tag, slope).serialize(s),
            Layer::MaxPool(MaxPool { window: w }) => window(w, s),
            Layer::AvgPool(AvgPool { window: w }) => window(w, s),
            Layer::Dense(Dense { units, bias }) => (tag, units, bias).serialize(s),
            Layer::Dropout(Dropout { rate }) => (tag, rate).serialize(s),
            Layer::AvgPoolTo(AvgPoolTo { h, w }) => (tag, h, w).serialize(s),
            Layer::Project(Project { dim, seed }) => (tag, dim, seed).serialize(s),
            Layer::Residual(Residual { back, project: None }) => (tag, back, false).serialize(s),
            Layer::Residual(Residual { back, project: Some(Projection { channels, stride }) }) => {
                (tag, back, true, channels, stride).serialize(s)
            }
            Layer::Embedding(Embedding { tokens, dim }) => (tag, tokens, dim).serialize(s),
            Layer::KMaxPool(KMaxPool { k }) => (tag, k).serialize(s),
            Layer::SpaceToDepth(SpaceToDepth { factor }) => (tag, factor).serialize(s),
            Layer::Quantise(Quantise { scale, zero }) => (tag, scale, zero).serialize(s),
            Layer::Activation(Activation::Relu | Activation::Relu6 | Activation::Tanh)
            | Layer::GlobalAvgPool(GlobalAvgPool)
            | Layer::Flatten(Flatten)
            | Layer::Standardise(Standardise)
            | Layer::L2Normalise(L2Normalise)
            | Layer::ChannelStd(ChannelStd) => tag.serialize(s),
        }
    }
}

/// The layer that a record holds.
pub(super) fn layer(f: &mut Fields<'_>) -> Result<Layer, FormatError> {
    Ok(match f.next()? {
        CONV2D => Layer::Conv2d(Conv2d {
            filters: f.next()?,
            kernel: f.pair()?,
            stride: f.pair()?,
            pad: f.pair()?,
            groups: f.next()?,
            bias: f.next()?,
        }),
        BATCH_NORM => {
            let (affine, eps, momentum) = (f.next()?, f.next()?, f.next()?);
            Layer::BatchNorm(BatchNorm { affine, eps, momentum })
        }
        RELU => Layer::Activation(Activation::Relu),
        RELU6 => Layer::Activation(Activation::Relu6),
        LEAKY_RELU => Layer::Activation(Activation::LeakyRelu { slope: f.next()? }),
        TANH => Layer::Activation(Activation::Tanh),
        MAX_POOL => Layer::MaxPool(MaxPool { window: window(f)? }),
        AVG_POOL => Layer::AvgPool(AvgPool { window: window(f)? }),
        GLOBAL_AVG_POOL => Layer::GlobalAvgPool(GlobalAvgPool),
        DENSE => Layer::Dense(Dense { units: f.next()?, bias: f.next()? }),
        DROPOUT => Layer::Dropout(Dropout { rate: f.next()? }),
        FLATTEN => Layer::Flatten(Flatten),
        STANDARDISE => Layer::Standardise(Standardise),
        L2_NORMALISE => Layer::L2Normalise(L2Normalise),
        AVG_POOL_TO => Layer::AvgPoolTo(AvgPoolTo { h: f.next()?, w: f.next()? }),
        CHANNEL_STD => Layer::ChannelStd(ChannelStd),
        PROJECT => Layer::Project(Project { dim: f.next()?, seed: f.next()? }),
        RESIDUAL => {
            let (back, projects) = (f.next()?, f.next()?);
            let project = match projects {
                true => Some(Projection { channels: f.next()?, stride: f.pair()? }),
                false => None,
            };
            Layer::Residual(Residual { back, project })
        }
        EMBEDDING => Layer::Embedding(Embedding { tokens: f.next()?, dim: f.next()? }),
        K_MAX_POOL => Layer::KMaxPool(KMaxPool { k: f.next()? }),
        SPACE_TO_DEPTH => Layer::SpaceToDepth(SpaceToDepth { factor: f.next()? }),
        QUANTISE => Layer::Quantise(Quantise { scale: f.next()?, zero: f.next()? }),
        tag => return Err(FormatError::Unknown { field: "layer tag", found: u64::from(tag) }),
    })
}

fn window(f: &mut Fields<'_>) -> Result<Window, FormatError> {
    Ok(Window { kernel: f.pair()?, stride: f.pair()?, pad: f.pair()? })
}

/// The role of a number; see [`Role`].
pub(super) fn role(number: u8) -> Result<Role, FormatError> {
    let unknown = FormatError::Unknown { field: "role", found: u64::from(number) };
    Role::ALL.into_iter().find(|&role| role as u8 == number).ok_or(unknown)
}

/// The element type of a number, where tensors can have it and this build can read it.
pub(super) fn dtype(number: u8) -> Result<Dtype, FormatError> {
    match number {
        0 => Ok(Dtype::F32),
        1 if cfg!(feature = "f16") => Ok(Dtype::F16),
        2 => Ok(Dtype::I8),
        _ => Err(FormatError::Unknown { field: "element type", found: u64::from(number) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::Raw;

    const WINDOW: Window = Window { kernel: (1, 2), stride: (3, 4), pad: (5, 6) };
    const LAYERS: [Layer; 22] = [
        Layer::Conv2d(Conv2d {
            filters: 300,
            kernel: (1, 2),
            stride: (3, 4),
            pad: (5, 6),
            groups: 7,
            bias: true,
        }),
        Layer::BatchNorm(BatchNorm { affine: true, eps: 0.5, momentum: 0.25 }),
        Layer::Activation(Activation::Relu),
        Layer::Activation(Activation::Relu6),
        Layer::Activation(Activation::LeakyRelu { slope: 0.125 }),
        Layer::Activation(Activation::Tanh),
        Layer::MaxPool(MaxPool { window: WINDOW }),
        Layer::AvgPool(AvgPool { window: WINDOW }),
        Layer::GlobalAvgPool(GlobalAvgPool),
        Layer::Dense(Dense { units: 70_000, bias: false }),
        Layer::Dropout(Dropout { rate: 0.75 }),
        Layer::Flatten(Flatten),
        Layer::Standardise(Standardise),
        Layer::L2Normalise(L2Normalise),
        Layer::AvgPoolTo(AvgPoolTo { h: 1, w: 2 }),
        Layer::ChannelStd(ChannelStd),
        Layer::Project(Project { dim: 3, seed: u64::MAX }),
        Layer::Residual(Residual {
            back: 200,
            project: Some(Projection { channels: 70_000, stride: (1, 2) }),
        }),
        Layer::Embedding(Embedding { tokens: 70_000, dim: 16 }),
        Layer::KMaxPool(KMaxPool { k: 8 }),
        Layer::SpaceToDepth(SpaceToDepth { factor: 2 }),
        Layer::Quantise(Quantise { scale: 0.5, zero: 3 }),
    ];

    #[test]
    fn every_layer_has_its_own_tag_and_comes_back() {
        for (layer, &(tag, name)) in LAYERS.iter().zip(TABLE) {
            let mut bytes = [0; 64];
            let written = postcard::to_slice(&Tagged(layer), &mut bytes).unwrap();
            assert_eq!((u16::from(written[0]), of(layer), layer.name()), (tag, tag, name));
            let raw = Raw::new(0, written);
            assert_eq!(super::layer(&mut Fields::new(&raw)), Ok(*layer));
            if let Some(shorter) = written.len().checked_sub(1) {
                let raw = Raw::new(0, &written[..shorter]);
                assert!(super::layer(&mut Fields::new(&raw)).is_err(), "{name} cut");
            }
        }
        assert_eq!(TABLE.len(), LAYERS.len());
        let plain = Layer::Residual(Residual::new(3));
        let mut bytes = [0; 8];
        let written = postcard::to_slice(&Tagged(&plain), &mut bytes).unwrap();
        assert_eq!(*written, [18, 3, 0]);
        assert_eq!(super::layer(&mut Fields::new(&Raw::new(0, written))), Ok(plain));
    }

    #[test]
    fn numbers_are_those_of_the_first_version() {
        for (expected, &(tag, _)) in (1..).zip(TABLE) {
            assert_eq!(tag, expected);
        }
        assert_eq!(of(&LAYERS[0]), 1);
        assert_eq!(of(&LAYERS[16]), 17);
        assert_eq!(of(&LAYERS[18]), 19);
    }

    #[test]
    fn unknown_tags_are_refused() {
        for tag in [0u16, 23, 99] {
            let bytes = [tag as u8];
            let refused = super::layer(&mut Fields::new(&Raw::new(0, &bytes)));
            let unknown = FormatError::Unknown { field: "layer tag", found: u64::from(tag) };
            assert_eq!(refused, Err(unknown));
        }
    }

    #[test]
    fn roles_and_types_have_the_numbers_of_their_enums() {
        for role in Role::ALL {
            assert_eq!(super::role(role as u8), Ok(role));
        }
        for dtype in [Dtype::F32, Dtype::I8] {
            assert_eq!(super::dtype(dtype as u8), Ok(dtype));
        }
        assert_eq!(super::dtype(Dtype::F16 as u8).is_ok(), cfg!(feature = "f16"));
        assert!(super::role(4).is_err() && super::dtype(Dtype::U8 as u8).is_err());
    }

    #[test]
    fn the_specification_has_the_same_table() {
        let page = include_str!("../../../docs/format.md");
        for (tag, name) in TABLE {
            let row = std::format!("| {tag} | `{name}` |");
            assert!(page.contains(&row), "no row {row}");
        }
    }
}
