//! The whole configuration with its defaults, as a file that loads to the same plan.
