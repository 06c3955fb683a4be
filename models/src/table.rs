//! What deep architectures are written with: layers one after the other, cut into blocks.

use sepal_core::layer::{BatchNorm, Conv2d, Dense, Flatten, Layer, RELU, Standardise};

/// The layers of a net and the ends of its blocks, as far as they are written. A net whose table
/// is not full fails [`Net::check`](sepal_core::net::Net::check): its blocks do not reach its end.
#[derive(Clone, Copy)]
pub(crate) struct Table<const LAYERS: usize, const BLOCKS: usize> {
    layers: [Layer; LAYERS],
    ends: [u16; BLOCKS],
    layer: usize,
    block: usize,
}

impl<const LAYERS: usize, const BLOCKS: usize> Table<LAYERS, BLOCKS> {
    pub(crate) const fn new() -> Self {
        Self { layers: [RELU; LAYERS], ends: [0; BLOCKS], layer: 0, block: 0 }
    }

    /// One more layer.
    pub(crate) const fn layer(mut self, layer: Layer) -> Self {
        self.layers[self.layer] = layer;
        self.layer += 1;
        self
    }

    /// All of `layers`.
    pub(crate) const fn all(mut self, layers: &[Layer]) -> Self {
        let mut at = 0;
        while at < layers.len() {
            self = self.layer(layers[at]);
            at += 1;
        }
        self
    }

    /// A convolution that keeps the size and has no bias (a norm takes it away again), batch norm
    /// without scale and shift, ReLU.
    pub(crate) const fn conv(self, filters: u32, kernel: (u8, u8)) -> Self {
        let pad = (kernel.0 / 2, kernel.1 / 2);
        let conv = Conv2d { kernel, pad, bias: false, ..Conv2d::new(filters, 1) };
        self.layer(Layer::Conv2d(conv)).layer(Layer::BatchNorm(BatchNorm::new())).layer(RELU)
    }

    /// A layer with batch norm and ReLU as Keras has them: scale and shift, eps 1e-3.
    pub(crate) const fn normed(self, layer: Layer) -> Self {
        let norm = BatchNorm { affine: true, eps: 1e-3, ..BatchNorm::new() };
        self.layer(layer).layer(Layer::BatchNorm(norm)).layer(RELU)
    }

    /// A depthwise 3x3 convolution of `channels` that moves by `stride`, then one of 1x1 to `filters`,
    /// each [`normed`](Self::normed): one block.
    pub(crate) const fn separable(self, channels: u32, filters: u32, stride: u8) -> Self {
        let depthwise = Conv2d {
            stride: (stride, stride),
            pad: (1, 1),
            groups: channels,
            ..Conv2d::new(channels, 3)
        };
        let pointwise = Conv2d::new(filters, 1);
        self.normed(Layer::Conv2d(depthwise)).normed(Layer::Conv2d(pointwise)).end()
    }

    /// The first layers of a classifier: standardised features.
    pub(crate) const fn features(self) -> Self {
        self.layer(Layer::Flatten(Flatten)).layer(Layer::Standardise(Standardise))
    }

    /// A hidden dense layer, the end of its block.
    pub(crate) const fn hidden(self, units: u32) -> Self {
        self.layer(Layer::Dense(Dense::new(units))).layer(RELU).end()
    }

    /// The last layer, the end of its block.
    pub(crate) const fn classes(self, classes: u32) -> Self {
        self.layer(Layer::Dense(Dense::new(classes))).end()
    }

    /// The end of a block.
    pub(crate) const fn end(mut self) -> Self {
        self.ends[self.block] = self.layer as u16;
        self.block += 1;
        self
    }

    pub(crate) const fn layers(self) -> [Layer; LAYERS] {
        self.layers
    }

    pub(crate) const fn ends(self) -> [u16; BLOCKS] {
        self.ends
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use sepal_core::net::Net;

    /// Multiply-accumulates of one sample.
    pub(crate) fn macs(net: &Net<'_>) -> u64 {
        let of = |(at, layer): (usize, &Layer)| layer.macs(net.shape(at).unwrap());
        net.layers.iter().enumerate().map(of).sum()
    }

    /// Weights of the convolutions among layers `..last`.
    pub(crate) fn conv_weights(net: &Net<'_>, last: usize) -> u32 {
        let convs = (0..last).filter(|&at| matches!(net.layers[at], Layer::Conv2d(_)));
        convs.map(|at| net.layers[at].tensors(net.shape(at).unwrap()).unwrap().weight).sum()
    }

    /// The first block has a convolution, each other a depthwise one and one of 1x1, all to these filters.
    pub(crate) fn check_separable(net: &Net<'_>, filters: &[u32]) {
        assert_eq!(usize::from(net.features), filters.len());
        for (block, &filters) in filters.iter().enumerate() {
            let (first, last) = net.block(block).unwrap();
            let mut channels = net.shape(first).unwrap().c;
            let mut kinds = Vec::new();
            for layer in &net.layers[first..last] {
                if let Layer::Conv2d(conv) = layer {
                    kinds.push((conv.groups == channels, conv.kernel == (1, 1), conv.bias));
                    channels = conv.filters;
                }
            }
            assert_eq!(channels, filters, "{block}");
            let pair = [(true, false, true), (false, true, true)];
            assert!(block == 0 && kinds.len() == 1 || kinds == pair, "{block}: {kinds:?}");
        }
    }

    /// Each block of features has one convolution with its norm and its ReLU.
    pub(crate) fn check_blocks(net: &Net<'_>, convs: usize) {
        assert_eq!((net.check(), net.features), (Ok(()), convs as u16));
        for block in 0..convs {
            let (first, last) = net.block(block).unwrap();
            let layers = &net.layers[first..last];
            let conv = layers.iter().position(|layer| matches!(layer, Layer::Conv2d(_)));
            let behind = &layers[conv.unwrap() + 1..];
            assert!(matches!(behind[0], Layer::BatchNorm(_)) && behind[1] == RELU, "{block}");
            let pool = |layer: &Layer| matches!(layer, Layer::MaxPool(_) | Layer::KMaxPool(_));
            assert!(behind[2..].iter().all(pool), "{block}");
        }
        assert!(!net.layers[net.features_end()..].iter().any(|l| matches!(l, Layer::MaxPool(_))));
    }
}
