//! A net for gestures: [readings of an accelerometer](crate::data::motion), convolved along time alone.
//!
//! Three convolutions of size 5 over time, of 8, 16 and 16 filters, each with batch norm (without scale
//! and shift), ReLU and a max-pool of 2; standardised features, dense layers of 32 and `classes`.
//!
//! The "magic wand" of TensorFlow Lite for Microcontrollers has two convolutions of 8 and 16 filters,
//! pools of 3 and dense layers of 16 and 4, and takes the axes for a second dimension. Here they are
//! channels, so that every block is a convolution that a small core can tune: at 16 samples a step
//! and with Adam's state each fits 64 kB.

use sepal_core::layer::{Layer, MaxPool, Window};
use sepal_core::net::{Input, Net, Normalisation};
use sepal_core::shape::Shape;

use crate::table::Table;

/// 128 readings of three axes.
const READINGS: Input =
    Input { shape: Shape::new(1, 3, 1, 128), normalisation: Normalisation::NONE };

/// Halves the length.
const POOL: MaxPool = MaxPool { window: Window { kernel: (1, 2), stride: (1, 2), pad: (0, 0) } };

const fn table(classes: u32) -> Table<17, 5> {
    let mut table = Table::new();
    let filters = [8, 16, 16];
    let mut conv = 0;
    while conv < filters.len() {
        table = table.conv(filters[conv], (1, 5)).layer(Layer::MaxPool(POOL)).end();
        conv += 1;
    }
    table.features().hidden(32).classes(classes)
}

/// The layers.
///
/// On 128 readings 105,600 multiply-accumulates and 10,988 parameters for 4 classes, statistics of norms included.
pub const fn gesture_layers(classes: u32) -> [Layer; 17] {
    table(classes).layers()
}

/// [`gesture_layers`] as a net of three blocks and a classifier. There are 8 readings at least.
pub const fn gesture(layers: &[Layer], input: Input) -> Net<'_> {
    const BLOCKS: [u16; 5] = table(1).ends();
    Net { input, layers, blocks: &BLOCKS, features: 3 }
}

/// The net for four classes of 128 readings.
///
/// ```
/// use sepal_core::shape::Shape;
/// use sepal_models::gesture::GESTURE;
/// assert_eq!(GESTURE.shape(GESTURE.features_end()), Ok(Shape::new(1, 16, 1, 16)));
/// ```
pub const GESTURE: Net<'static> = gesture(&gesture_layers(4), READINGS);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::tests::{check_blocks, macs};

    #[test]
    fn sizes_are_as_said() {
        check_blocks(&GESTURE, 3);
        assert_eq!(macs(&GESTURE), 105_600);
        assert_eq!(GESTURE.params(GESTURE.layers.len()), Ok(10_988));
    }
}
