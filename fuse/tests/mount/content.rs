use std::fs;

use skep_fuse::vault::VaultKind;

use crate::harness::{World, private};

#[test]
fn serves_binary_content_of_any_size_from_both_vaults() {
    for kind in [VaultKind::SecretMem, VaultKind::Mlock] {
        private(move |dir| {
            let world = World::new(kind, dir);
            assert_eq!(world.vault.kind(), kind);
            for size in [0usize, 1, 64, 4_096, 4_097, 511_999, 1_024_000] {
                let bytes: Vec<u8> = (0..size).map(|i| (i * 31 % 256) as u8).collect();
                let name = format!("secret-{size}");
                world.deliver(&name, 1, &bytes);
                assert_eq!(fs::read(world.secret(&name)).unwrap(), bytes);
                assert_eq!(fs::metadata(world.secret(&name)).unwrap().len(), size as u64);
            }
        });
    }
}
