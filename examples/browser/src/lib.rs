//! What the page calls: plain functions over memory that is all in one place.
//!
//! A function that can be refused answers with a negative number then, and `text` says why.
#![cfg_attr(target_family = "wasm", no_std)]

pub mod learner;
mod map;
mod ram;

#[cfg(target_family = "wasm")]
mod exports;
