//! Wireloom's image.

use std::fs;

use crate::fixtures::{IMAGES, TAGS, build_image};

#[test]
fn the_image_is_the_same_whenever_it_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let again = directory.path().join("again.tar");
    build_image(TAGS[0], &again);
    let (first, again) = (fs::read(&IMAGES[0]).unwrap(), fs::read(again).unwrap());
    println!("figure: the image has {} KiB", first.len() / 1024);
    assert!(first == again, "{} and {} bytes, which differ", first.len(), again.len());
}
