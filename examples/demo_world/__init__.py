"""The world of the demo model: a grammar of captions, a program that draws them, and a judge of pictures."""
