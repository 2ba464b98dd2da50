"""Make samples out of what people keep videos and images in."""
