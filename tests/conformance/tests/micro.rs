//! The backend for small cores passes the suite.

use sepal_core::micro::Micro;

sepal_conformance::suite!(micro, |words| Micro::<true>::new(words));
