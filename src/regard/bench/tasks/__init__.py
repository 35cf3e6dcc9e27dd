"""Tasks with a known answer: where in the picture a question's object is."""
