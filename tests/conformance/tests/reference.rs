//! The reference, held to its own specification.

use sepal_core::reference::Reference;

sepal_conformance::suite!(reference, |words| Reference::new(words));
