"""`distilldepth label`: what teachers say of many images, stored as shards that training reads instead of teachers."""
