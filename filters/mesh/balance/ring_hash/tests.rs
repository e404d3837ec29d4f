crate::mesh::balance::hashed_tests::suite!(|| super::core::Ring { load_factor: 1.25 }, super::ENTRY);
