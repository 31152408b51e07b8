use std::convert::Infallible;

use super::*;

const KINDS: [VaultKind; 2] = [VaultKind::SecretMem, VaultKind::Mlock];

fn put(vault: &Vault, bytes: &[u8]) -> Slot {
    vault
        .store(bytes.len(), |slot| {
            assert!(slot.iter().all(|&byte| byte == 0), "a slot starts zeroed");
            slot.copy_from_slice(bytes);
            Ok::<(), Infallible>(())
        })
        .unwrap()
}

fn get(slot: &Slot) -> Result<Vec<u8>, VaultError> {
    let mut bytes = vec![0; slot.len()];
    let read = slot.read_into(0, &mut bytes)?;
    assert_eq!(read, slot.len());
    Ok(bytes)
}

#[test]
fn gives_back_what_it_was_given() {
    for kind in KINDS {
        let vault = Vault::new(kind, 1 << 20).unwrap();
        assert_eq!(vault.kind(), kind);
        let (empty, text) = (put(&vault, b""), put(&vault, b"correct horse"));
        let large: Vec<u8> = (0..500_000u32).map(|i| i as u8).collect();
        let large_slot = put(&vault, &large);
        assert!(empty.is_empty());
        assert_eq!(get(&text).unwrap(), b"correct horse");
        assert_eq!(get(&large_slot).unwrap(), large);
        let mut part = [0; 8];
        assert_eq!(text.read_into(8, &mut part).unwrap(), 5);
        assert_eq!(&part[..5], b"horse");
        assert_eq!(text.read_into(u64::MAX, &mut part).unwrap(), 0);
    }
}

#[test]
fn answers_through_memory_that_is_wiped() {
    for kind in KINDS {
        let vault = Vault::new(kind, 1 << 20).unwrap();
        let slot = put(&vault, b"battery staple");
        let mut bounce = Bounce::new().unwrap();
        let seen = slot.serve(8, 100, &mut bounce, <[u8]>::to_vec).unwrap();
        assert_eq!(seen, b"staple");
        assert!(bounce.raw().iter().all(|&byte| byte == 0));
    }
}

#[test]
fn zeroes_a_slot_that_goes_and_uses_its_room_again() {
    for kind in KINDS {
        let vault = Vault::new(kind, 4_096).unwrap();
        for _ in 0..10 {
            let slot = put(&vault, &[0xa5; 4_096]);
            assert!(matches!(
                vault.store(1, |_| Ok::<(), Infallible>(())),
                Err(StoreError::Vault(VaultError::Full { asked: 1, used: 4_096, capacity: 4_096 }))
            ));
            drop(slot);
            assert_eq!(vault.used(), 0);
        }
    }
}

#[test]
fn keeps_nothing_of_a_payload_that_failed() {
    let vault = Vault::new(VaultKind::Auto, 4_096).unwrap();
    assert_ne!(vault.kind(), VaultKind::Auto);
    let failed = vault.store(4_096, |slot| {
        slot.fill(0xa5);
        Err("tag mismatch")
    });
    assert!(matches!(failed, Err(StoreError::Fill("tag mismatch"))));
    assert_eq!(vault.used(), 0);
    put(&vault, &[1; 4_096]);
}

#[test]
fn nothing_goes_in_or_out_after_wipe() {
    for kind in KINDS {
        let vault = Vault::new(kind, 4_096).unwrap();
        let slot = put(&vault, b"secret");
        vault.wipe();
        vault.wipe();
        assert!(matches!(get(&slot), Err(VaultError::Wiped)));
        let mut bounce = Bounce::new().unwrap();
        assert!(matches!(slot.serve(0, 9, &mut bounce, |_| ()), Err(VaultError::Wiped)));
        assert!(matches!(
            vault.store(1, |_| Ok::<(), Infallible>(())),
            Err(StoreError::Vault(VaultError::Wiped))
        ));
        let start = vault.0.arena.at(0, 4_096).unwrap();
        let raw = unsafe { std::slice::from_raw_parts(start.as_ptr(), 4_096) };
        assert!(raw.iter().all(|&byte| byte == 0));
    }
}

#[test]
fn no_formatting_shows_a_payload() {
    let vault = Vault::new(VaultKind::Mlock, 4_096).unwrap();
    let slot = put(&vault, b"canary");
    let decimal = format!("{:?}", b"canary");
    for text in [format!("{vault:?}"), format!("{slot:?} {slot:#?}"), format!("{:?}", vault.0)] {
        assert!(!text.contains("canary"), "{text}");
        assert!(!text.contains(decimal.trim_matches(['[', ']'])), "{text}");
    }
}

#[test]
fn many_threads_share_a_vault() {
    let vault = Vault::new(VaultKind::Auto, 1 << 20).unwrap();
    std::thread::scope(|scope| {
        for id in 0..4u8 {
            let vault = &vault;
            scope.spawn(move || {
                for round in 0..200usize {
                    let bytes = vec![id; 1 + round * 37 % 5_000];
                    let slot = put(vault, &bytes);
                    assert_eq!(get(&slot).unwrap(), bytes);
                }
            });
        }
    });
    assert_eq!(vault.used(), 0);
}

#[test]
fn kinds_parse_as_they_print() {
    for kind in [VaultKind::Auto, VaultKind::SecretMem, VaultKind::Mlock] {
        assert_eq!(kind.to_string().parse::<VaultKind>().unwrap(), kind);
    }
    assert!("swap".parse::<VaultKind>().is_err());
}
