crate::mesh::balance::hashed_tests::suite!(|| super::core::Maglev { load_factor: 1.25 }, super::ENTRY);
