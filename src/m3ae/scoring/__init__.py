"""What is right, how often, and how sure: from predictions alone, with numpy and scipy."""
