"""Stand-ins and tools that the tests share; nothing here is part of comfypod."""
