//! Wrappers around a backend.

/// Methods of [`Backend`](crate::Backend) that a wrapper leaves to the backend in its field.
#[macro_export]
macro_rules! delegate {
    ($inner:ident: $($method:ident)*) => { $($crate::delegate!(@ $inner $method);)* };
    (@ $i:ident bytes) => {
        fn bytes(&self) -> usize {
            self.$i.bytes()
        }
    };
    (@ $i:ident write) => {
        fn write(&mut self, slot: $crate::seam::Slot, from: $crate::seam::Host<'_>)
            -> $crate::seam::Result<()> {
            self.$i.write(slot, from)
        }
    };
    (@ $i:ident read) => {
        fn read(&mut self, slot: $crate::seam::Slot, into: $crate::seam::HostMut<'_>)
            -> $crate::seam::Result<()> {
            self.$i.read(slot, into)
        }
    };
    (@ $i:ident fill) => {
        fn fill(
            &mut self,
            slot: $crate::seam::Slot,
            with: &mut dyn FnMut($crate::seam::HostMut<'_>) -> $crate::seam::Result<()>,
        ) -> $crate::seam::Result<()> {
            self.$i.fill(slot, with)
        }
    };
    (@ $i:ident zero) => {
        fn zero(&mut self, slot: $crate::seam::Slot) -> $crate::seam::Result<()> {
            self.$i.zero(slot)
        }
    };
    (@ $i:ident copy) => {
        fn copy(&mut self, from: $crate::seam::Slot, to: $crate::seam::Slot)
            -> $crate::seam::Result<()> {
            self.$i.copy(from, to)
        }
    };
    (@ $i:ident widen) => {
        fn widen(
            &mut self,
            raw: $crate::seam::Slot,
            normalisation: &$crate::seam::Normalisation,
            x: $crate::seam::Slot,
        ) -> $crate::seam::Result<()> {
            self.$i.widen(raw, normalisation, x)
        }
    };
    (@ $i:ident forward) => {
        fn forward(&mut self, call: &$crate::seam::Call<'_>) -> $crate::seam::Result<()> {
            self.$i.forward(call)
        }
    };
    (@ $i:ident backward) => {
        fn backward(&mut self, call: &$crate::seam::Call<'_>) -> $crate::seam::Result<()> {
            self.$i.backward(call)
        }
    };
    (@ $i:ident backward_source) => {
        fn backward_source(&mut self, call: &$crate::seam::Call<'_>) -> $crate::seam::Result<()> {
            self.$i.backward_source(call)
        }
    };
    (@ $i:ident objective) => {
        fn objective(
            &mut self,
            objective: &$crate::seam::Objective,
            at: &$crate::seam::ObjectivePlace,
        ) -> $crate::seam::Result<$crate::seam::Score> {
            self.$i.objective(objective, at)
        }
    };
    (@ $i:ident update) => {
        fn update(
            &mut self,
            rule: &$crate::seam::Rule,
            rate: f32,
            update: u32,
            params: $crate::seam::Params,
        ) -> $crate::seam::Result<()> {
            self.$i.update(rule, rate, update, params)
        }
    };
    (@ $i:ident nearest) => {
        fn nearest(
            &mut self,
            queries: $crate::seam::Bank<'_>,
            bank: $crate::seam::Bank<'_>,
            first: u32,
            skip: Option<u32>,
            pairs: &mut [$crate::seam::Pair],
        ) -> $crate::seam::Result<()> {
            self.$i.nearest(queries, bank, first, skip, pairs)
        }
    };
    (@ $i:ident top_k) => {
        fn top_k(
            &mut self,
            queries: $crate::seam::Bank<'_>,
            bank: $crate::seam::Bank<'_>,
            first: u32,
            skip: Option<u32>,
            k: usize,
            out: &mut [$crate::seam::Nearest],
        ) -> $crate::seam::Result<()> {
            self.$i.top_k(queries, bank, first, skip, k, out)
        }
    };
}

/// The types of the seam, for [`delegate`](crate::delegate).
pub mod seam {
    pub use sepal_core::arena::Slot;
    pub use sepal_core::backend::{Bank, Call, Host, HostMut, ObjectivePlace};
    pub use sepal_core::loss::Score;
    pub use sepal_core::neighbour::{Nearest, Pair};
    pub use sepal_core::net::Normalisation;
    pub use sepal_core::optim::Rule;
    pub use sepal_core::plan::Params;
    pub use sepal_core::stage::Objective;

    /// A result of the seam.
    pub type Result<T> = core::result::Result<T, sepal_core::error::Error>;
}
