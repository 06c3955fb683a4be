//! Nets from and for other libraries: what they compute there is what they compute here.

#[path = "interchange/node.rs"]
mod node;
#[path = "interchange/torch.rs"]
mod torch;
#[path = "interchange/vectors.rs"]
mod vectors;
