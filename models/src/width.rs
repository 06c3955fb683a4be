//! Wider and narrower nets.

use sepal_core::layer::{Conv2d, Dense, Embedding, Layer, Projection, Residual};

/// The same layers with `percent` of the filters, hidden units and embedding dimensions: rounded
/// to the nearest, at least 1. A dense layer that is the last keeps its size: it has an output for
/// each class. Channels that a shortcut projects change as the filters that give them do. Depthwise
/// convolutions stay depthwise; other groups stay as many as they are, so that such convolutions may no
/// longer fit.
///
/// ```
/// use sepal_core::layer::{Dense, Layer};
/// use sepal_models::vgg::{VGG16, vgg16, vgg16_layers};
/// use sepal_models::width::scaled;
///
/// const HALF: [Layer; 47] = scaled(vgg16_layers(10), 50);
/// let half = vgg16(&HALF, VGG16.input);
/// assert_eq!(half.shape(half.features_end())?.c, 256);
/// assert_eq!(half.layers[46], Layer::Dense(Dense::new(10)));
/// # Ok::<(), sepal_core::plan::PlanError>(())
/// ```
pub const fn scaled<const LAYERS: usize>(
    mut layers: [Layer; LAYERS],
    percent: u32,
) -> [Layer; LAYERS] {
    let mut at = 0;
    while at < LAYERS {
        layers[at] = match layers[at] {
            Layer::Conv2d(l) => {
                let filters = part(l.filters, percent);
                let depthwise = l.groups > 1 && l.groups == l.filters;
                let groups = if depthwise { filters } else { l.groups };
                Layer::Conv2d(Conv2d { filters, groups, ..l })
            }
            Layer::Dense(l) if at + 1 < LAYERS => {
                Layer::Dense(Dense { units: part(l.units, percent), ..l })
            }
            Layer::Embedding(l) => Layer::Embedding(Embedding { dim: part(l.dim, percent), ..l }),
            Layer::Residual(Residual { back, project: Some(Projection { channels, stride }) }) => {
                let project = Some(Projection { channels: part(channels, percent), stride });
                Layer::Residual(Residual { back, project })
            }
            other => other,
        };
        at += 1;
    }
    layers
}

/// `percent` of `whole`, rounded, from 1 to the largest number of 32 bits: the filters, units or
/// dimensions that [`scaled`] leaves of so many.
///
/// ```
/// use sepal_models::width::part;
/// assert_eq!([part(16, 20), part(16, 22), part(16, 1)], [3, 4, 1]);
/// ```
pub const fn part(whole: u32, percent: u32) -> u32 {
    match (whole as u64 * percent as u64 + 50) / 100 {
        0 => 1,
        part if part > u32::MAX as u64 => u32::MAX,
        part => part as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lenet::{LENET, lenet_layers};
    use crate::mobilenet::{MOBILENET, mobilenet, mobilenet_layers};
    use crate::vdcnn::vdcnn9_layers;

    #[test]
    fn all_layers_but_the_last_change() {
        assert_eq!(scaled(lenet_layers(10), 100), LENET.layers);
        let units = |percent| {
            scaled(lenet_layers(10), percent).into_iter().filter_map(|layer| match layer {
                Layer::Conv2d(l) => Some(l.filters),
                Layer::Dense(l) => Some(l.units),
                _ => None,
            })
        };
        assert!(units(50).eq([3, 8, 60, 42, 10]));
        assert!(units(10).eq([1, 2, 12, 8, 10]));
        assert!(units(0).eq([1, 1, 1, 1, 10]));
        assert!(units(300).eq([18, 48, 360, 252, 10]));
        assert_eq!(part(u32::MAX, 200), u32::MAX);
        let half = scaled(vdcnn9_layers(4), 50)[0];
        assert!(matches!(half, Layer::Embedding(Embedding { tokens: 71, dim: 8 })));
    }

    #[test]
    fn depthwise_convolutions_follow_their_channels() {
        for (percent, features) in [(1, 3), (50, 128), (400, 1024)] {
            let layers = scaled(mobilenet_layers(2), percent);
            let net = mobilenet(&layers, MOBILENET.input);
            assert_eq!(net.check(), Ok(()));
            assert_eq!(net.shape(net.features_end()).map(|shape| shape.c), Ok(features));
        }
        let grouped = [Layer::Conv2d(Conv2d { groups: 2, ..Conv2d::new(8, 3) })];
        let half = Layer::Conv2d(Conv2d { groups: 2, ..Conv2d::new(4, 3) });
        assert_eq!(scaled(grouped, 50), [half]);
    }
}
