//! A device whose memory the host cannot read: everything reaches it through copies. The seam
//! allows it where the whole suite passes and a training gives the reference's bits.

use std::collections::BTreeMap;

use sepal_conformance::seam::{
    Bank, Call, Host, HostMut, Nearest, Normalisation, Objective, ObjectivePlace, Pair, Params,
    Result, Rule, Score, Slot,
};
use sepal_conformance::{Backend, Word, training};
use sepal_core::arena::{ArenaError, Dtype};
use sepal_core::backend::{Param, same_length};
use sepal_core::error::Error;
use sepal_core::layer::Role;
use sepal_core::net::{Model, Stored};
use sepal_core::reference::Reference;

sepal_conformance::suite!(device, |words| Device::new(words.len()));

/// Memory that is scrambled at rest, backwards and masked, and whole only inside a kernel.
struct Device {
    scrambled: Vec<[u8; 16]>,
    /// Frozen weights, by layer: a kernel does not reach the host's model.
    uploaded: BTreeMap<usize, [Vec<f32>; 4]>,
}

const MASK: u8 = 0xa5;

fn scramble(word: [u8; 16]) -> [u8; 16] {
    word.map(|byte| byte ^ MASK)
}

impl Device {
    fn new(words: usize) -> Self {
        Self { scrambled: vec![[0xff; 16]; words], uploaded: BTreeMap::new() }
    }

    /// Runs a kernel where the memory is.
    fn launch<T>(&mut self, kernel: impl FnOnce(&mut Reference<'_>) -> T) -> T {
        let plain = self.scrambled.iter().rev();
        let mut memory: Vec<Word> = plain.map(|word| bytemuck::cast(scramble(*word))).collect();
        let result = kernel(&mut Reference::new(&mut memory));
        let words = memory.into_iter().rev();
        self.scrambled = words.map(|word| scramble(bytemuck::cast(word))).collect();
        result
    }

    /// Copies staged bytes into a slot.
    fn upload(&mut self, slot: Slot, dtype: Dtype, staged: &[u8]) -> Result<()> {
        check(slot, dtype, staged.len())?;
        self.launch(|b| {
            let [to] = b.arena().lease([slot])?;
            to.bytes().copy_from_slice(staged);
            Ok(())
        })
    }

    /// Copies a slot to staged bytes.
    fn download(&mut self, slot: Slot, dtype: Dtype, staged: &mut [u8]) -> Result<()> {
        check(slot, dtype, staged.len())?;
        self.launch(|b| {
            let [from] = b.arena().lease([slot])?;
            staged.copy_from_slice(from.bytes());
            Ok(())
        })
    }
}

fn check(slot: Slot, asked: Dtype, staged: usize) -> Result<()> {
    same_length(slot, staged / asked.size())?;
    if slot.dtype == asked {
        Ok(())
    } else {
        Err(ArenaError::Dtype { slot: slot.dtype, asked }.into())
    }
}

impl Backend for Device {
    fn bytes(&self) -> usize {
        self.scrambled.len() * Word::BYTES
    }

    fn queue(&self) -> u32 {
        2
    }

    fn prepare(&mut self, model: &Model<'_>, first: usize, last: usize) -> Result<()> {
        for layer in first..last {
            let shape = model.net.shape(layer)?;
            let tensors = model.net.layers[layer].tensors(shape).unwrap_or_default();
            let stored = model.weights.layer(&model.net, layer);
            let mut numbers: [Vec<f32>; 4] = Default::default();
            for ((numbers, stored), role) in numbers.iter_mut().zip(stored).zip(Role::ALL) {
                let expected = tensors.len(role) as usize;
                *numbers = vec![0.0; expected];
                if !stored.widen(numbers) {
                    return Err(Error::Weights { layer, expected, got: stored.len() });
                }
            }
            self.uploaded.insert(layer, numbers);
        }
        Ok(())
    }

    fn write(&mut self, slot: Slot, from: Host<'_>) -> Result<()> {
        match from {
            Host::F32(v) => self.upload(slot, Dtype::F32, bytemuck::cast_slice(v)),
            Host::U8(v) => self.upload(slot, Dtype::U8, v),
            Host::U16(v) => self.upload(slot, Dtype::U16, bytemuck::cast_slice(v)),
        }
    }

    fn read(&mut self, slot: Slot, into: HostMut<'_>) -> Result<()> {
        match into {
            HostMut::F32(v) => self.download(slot, Dtype::F32, bytemuck::cast_slice_mut(v)),
            HostMut::U8(v) => self.download(slot, Dtype::U8, v),
            HostMut::U16(v) => self.download(slot, Dtype::U16, bytemuck::cast_slice_mut(v)),
            HostMut::Pair(v) => {
                let mut words = vec![[0u32; 4]; v.len()];
                self.download(slot, Dtype::Pair, bytemuck::cast_slice_mut(&mut words))?;
                v.iter_mut().zip(words).for_each(|(v, words)| *v = Pair::from_words(words));
                Ok(())
            }
        }
    }

    fn fill(&mut self, slot: Slot, with: &mut dyn FnMut(HostMut<'_>) -> Result<()>) -> Result<()> {
        let past = slot.at.saturating_add(slot.bytes());
        if past > self.bytes() {
            return Err(ArenaError::OutOfMemory { needed: past, given: self.bytes() }.into());
        }
        match slot.dtype {
            Dtype::F32 => {
                let mut staged = vec![f32::NAN; slot.elements()];
                with(HostMut::F32(&mut staged))?;
                self.write(slot, Host::F32(&staged))
            }
            Dtype::U8 => {
                let mut staged = vec![0xff; slot.elements()];
                with(HostMut::U8(&mut staged))?;
                self.write(slot, Host::U8(&staged))
            }
            Dtype::U16 => {
                let mut staged = vec![0xffff; slot.elements()];
                with(HostMut::U16(&mut staged))?;
                self.write(slot, Host::U16(&staged))
            }
            _ => Err(Error::Unsupported("filling slots of this type")),
        }
    }

    fn zero(&mut self, slot: Slot) -> Result<()> {
        self.launch(|b| b.zero(slot))
    }

    fn copy(&mut self, from: Slot, to: Slot) -> Result<()> {
        self.launch(|b| b.copy(from, to))
    }

    fn widen(&mut self, raw: Slot, normalisation: &Normalisation, x: Slot) -> Result<()> {
        self.launch(|b| b.widen(raw, normalisation, x))
    }

    fn forward(&mut self, call: &Call<'_>) -> Result<()> {
        let Param::Model { layer, .. } = call.param else {
            return self.launch(|b| b.forward(call));
        };
        let unprepared = Error::Device { code: 1, doing: "a layer that was not prepared" };
        let numbers = self.uploaded.get(&layer).cloned().ok_or(unprepared)?;
        let tensors = numbers.each_ref().map(|numbers| Stored {
            dtype: Dtype::F32,
            bytes: bytemuck::cast_slice(numbers),
            scales: &[],
        });
        let param = Param::Model { layer, tensors };
        self.launch(|b| b.forward(&Call { param, ..*call }))
    }

    fn backward(&mut self, call: &Call<'_>) -> Result<()> {
        self.launch(|b| b.backward(call))
    }

    fn backward_source(&mut self, call: &Call<'_>) -> Result<()> {
        self.launch(|b| b.backward_source(call))
    }

    fn objective(&mut self, objective: &Objective, at: &ObjectivePlace) -> Result<Score> {
        self.launch(|b| b.objective(objective, at))
    }

    fn update(&mut self, rule: &Rule, rate: f32, update: u32, params: Params) -> Result<()> {
        self.launch(|b| b.update(rule, rate, update, params))
    }

    fn nearest(
        &mut self,
        queries: Bank<'_>,
        bank: Bank<'_>,
        first: u32,
        skip: Option<u32>,
        pairs: &mut [Pair],
    ) -> Result<()> {
        self.launch(|b| b.nearest(queries, bank, first, skip, pairs))
    }

    fn top_k(
        &mut self,
        queries: Bank<'_>,
        bank: Bank<'_>,
        first: u32,
        skip: Option<u32>,
        k: usize,
        out: &mut [Nearest],
    ) -> Result<()> {
        self.launch(|b| b.top_k(queries, bank, first, skip, k, out))
    }
}

/// The host's words stay as they were, and the device's own do not show what was written.
#[test]
fn the_host_sees_nothing() {
    let slot = Slot::vector(0, 4, Dtype::F32);
    let mut device = Device::new(2);
    device.write(slot, Host::F32(&[1.0, 2.0, 3.0, 4.0])).unwrap();
    let shows = |device: &Device| {
        let bytes = device.scrambled.as_flattened();
        bytes.windows(4).any(|bytes| bytes == 2f32.to_le_bytes())
    };
    assert!(!shows(&device));
    let mut numbers = [0.0; 4];
    device.read(slot, HostMut::F32(&mut numbers)).unwrap();
    assert_eq!(numbers, [1.0, 2.0, 3.0, 4.0]);
}

#[test]
fn training_gives_the_bits_of_the_reference() {
    let on_device = training::bits(|words, work| work(&mut Device::new(words.len())));
    let on_host = training::bits(|words, work| work(&mut Reference::new(words)));
    assert!(on_device == on_host);
}
