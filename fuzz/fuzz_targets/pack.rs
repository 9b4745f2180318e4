#![no_main]

lifeboat_fuzz::target!(pack);
