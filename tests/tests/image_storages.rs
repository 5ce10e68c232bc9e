//! Makes the images of the tests, where they are not made yet, and prints what each set is called and where its storage
//! is: `cargo xtask guest test` hands them in.

use orlop_tests::{critest, images};

fn main() {
    for (name, storage) in [(images::ORDINARY, images::storage()), (critest::IMAGES, critest::storage())] {
        println!("{name} {}", storage.display());
    }
}
